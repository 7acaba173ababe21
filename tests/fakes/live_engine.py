"""One engine in this process: the real handlers, request table, hand-over and core, without sockets to clients.

The core runs in a task of the same event loop. What it is sent and what it says arrive a turn later, as from
another process, so that each can cross the other on its way.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from aiohttp import streams, web
from aiohttp.test_utils import make_mocked_request

from fakes.core_harness import CoreHarness, sim_config
from fakes.kv_nodes import record
from triptych_contract.clock import SystemClock
from triptych_contract.ids import random_id
from triptych_contract.registry import Registry
from triptych_contract.roles import Assignment, PhaseEvent, Role, Stage
from triptych_engine.core.board import BoardSample
from triptych_engine.core.engine import ready
from triptych_engine.messages import Inbox
from triptych_engine.server.access import Guard
from triptych_engine.server.app import build_app
from triptych_engine.server.card import simulated_card
from triptych_engine.server.engine import Engine
from triptych_engine.server.events import EventHub
from triptych_engine.server.keys import REQUEST_ID, TRUSTED
from triptych_engine.server.role import RoleState
from triptych_engine.settings import read_settings
from triptych_engine.transfer.service import Handover

TOKEN = "a-service-token-of-tests"


class CoreInTask:
    """The core as the server sees it."""

    def __init__(self, harness: CoreHarness) -> None:
        self.harness = harness
        self.inbox: deque[Inbox] = deque()
        self._woken = asyncio.Event()

    def send(self, message: Inbox) -> None:
        self.inbox.append(message)
        self._woken.set()

    def board(self) -> BoardSample:
        return BoardSample(step=0, started_ns=0, predicted_ns=0)

    def stuck_ms(self) -> float:
        return 0.0

    async def run(self, engine: Engine) -> None:
        """Messages in, a step, messages out, for ever; a turn of the event loop lies between them."""
        busy = False
        while True:
            if not busy and not self.inbox:
                self._woken.clear()
                await self._woken.wait()
            await asyncio.sleep(0)
            while self.inbox:
                self.harness.tell(self.inbox.popleft())
            busy = self.harness.step()
            said, self.harness.said = self.harness.said, []
            await asyncio.sleep(0)
            for message in said:
                engine.table.dispatch(message)
            engine.stats = self.harness.stats()


@dataclass
class LiveEngine:
    """One engine and its application."""

    engine: Engine
    core: CoreInTask
    app: web.Application

    def request(self, path: str, body: bytes) -> web.Request:
        """A call by the router whose body comes in two pieces, to a client that takes each write a turn later."""
        loop = asyncio.get_running_loop()
        payload = streams.StreamReader(mock.Mock(_reading_paused=False), 2**16, loop=loop)
        payload.feed_data(body[: len(body) // 2])
        loop.call_soon(lambda: loop.call_soon(self._feed_rest, payload, body))
        headers = {"content-type": "application/json"}
        request = make_mocked_request(
            "POST", path, headers=headers, app=self.app, writer=LateWriter(), payload=payload, client_max_size=2**25
        )
        request[REQUEST_ID], request[TRUSTED] = random_id(), True
        return request

    @staticmethod
    def _feed_rest(payload: streams.StreamReader, body: bytes) -> None:
        payload.feed_data(body[len(body) // 2 :])
        payload.feed_eof()

    @property
    def held(self) -> dict[str, Any]:
        """Everything that is not at rest; empty at rest."""
        stats = self.core.harness.stats()
        found = {
            "live": self.core.harness.core.num_live,
            "held": stats.blocks.held,
            "in transfer": stats.blocks.in_transfer,
            "open": len(self.engine.table),
            "calls": self.engine.table.calls,
            "leases": self.engine.handover.leases,
            "unread": len(self.core.inbox),
            "faults": self.core.harness.core.audit(),
        }
        return {name: value for name, value in found.items() if value}


class LateWriter(mock.Mock):
    """What a response is written to; each write lets other tasks run first, so that it can be cancelled in it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for name in ("write_headers", "write", "write_eof", "drain"):
            setattr(self, name, self._late)

    @staticmethod
    async def _late(*_arguments: Any, **_named: Any) -> None:
        await asyncio.sleep(0)

    def _get_child_mock(self, /, **named: Any) -> mock.Mock:
        return mock.Mock(**named)


@contextlib.asynccontextmanager
async def live_engine(name: str, registry: Registry, role: Role = Role.ALL) -> AsyncIterator[LiveEngine]:
    """A serving engine that ends with the block."""
    core = CoreInTask(CoreHarness(sim_config()))
    clock = SystemClock()
    settings = read_settings(["--sim", "--instance-id", name])
    state = RoleState(initial=Assignment(role, 1), capable=frozenset(Stage))
    handover = Handover(
        instance_id=name,
        service_token=TOKEN,
        link_host="127.0.0.1",
        registry=registry,
        service="default",
        clock=clock,
        new_id=random_id,
        core_send=core.send,
        lease_ttl_ms=20_000,
    )
    engine = Engine(
        settings=settings,
        incarnation=random_id(),
        card=simulated_card("sim"),
        role=state,
        clock=clock,
        new_id=random_id,
        handover=handover,
        core=core,  # type: ignore[arg-type]
        ready=ready(core.harness.executor.info),
    )
    app = build_app(engine, EventHub(engine.state), Guard(token=TOKEN, loopback=True, insecure=False))
    app.freeze()
    port = await handover.start(ready(core.harness.executor.info), memoryview(core.harness.pool))
    await registry.register(record(name, port))
    state.apply(PhaseEvent.LOADED)
    stepping = asyncio.create_task(core.run(engine), name="core")
    try:
        yield LiveEngine(engine, core, app)
    finally:
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)
        await handover.stop()
