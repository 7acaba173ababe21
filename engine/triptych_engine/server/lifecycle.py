"""From start to exit: listen, load, register, serve, drain.

HTTP listens before the model is loaded, so that the instance can say how far it is. The program ends with
status 0 after a drain or when stdin ends, and with 1 when the core or the model fails.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web

from triptych_contract.clock import SystemClock
from triptych_contract.errors import NotReady
from triptych_contract.ids import random_id
from triptych_contract.instance import BEAT_MS, InstanceRecord
from triptych_contract.program.stdin import when_stdin_ends
from triptych_contract.registry import LocalRegistry, Registration
from triptych_contract.roles import Assignment, Phase, PhaseEvent, Role
from triptych_engine.messages import AuditResult, CoreFailed, CoreStats, KVChanged, Outbox, Progress, Ready
from triptych_engine.server.access import Guard
from triptych_engine.server.app import build_app, build_runner
from triptych_engine.server.card import ModelCard, ModelFilesError, load_card, simulated_card
from triptych_engine.server.engine import Engine
from triptych_engine.server.events import EventHub
from triptych_engine.server.log import log, log_exception
from triptych_engine.server.requests import CORE_LOST
from triptych_engine.server.role import RoleState
from triptych_engine.server.supervise import CoreProcess, core_config
from triptych_engine.settings import Settings
from triptych_engine.transfer.service import Handover

EXIT_OK, EXIT_FAILED = 0, 1
CLOSING_S = 1.0
"""Time for the clean errors of a drain that took too long to reach their clients."""
INSECURE_SECRET = "insecure-loopback-only"  # noqa: S105 - the name of having none
ENDING = NotReady("This instance is shutting down.", retry_after_ms=1000)
LOG_INFO, LOG_ERROR = 20, 40


async def serve(settings: Settings) -> int:
    """Run one engine until it is told to end; the result is the program's exit status."""
    log(LOG_INFO, "starting", settings=repr(settings))
    try:
        card = await asyncio.to_thread(_card, settings)
    except ModelFilesError as error:
        log(LOG_ERROR, "model-refused", reason=str(error))
        print(f"triptych-engine: {error}", file=sys.stderr)
        return EXIT_FAILED
    return await Program(settings, card).run()


def _card(settings: Settings) -> ModelCard:
    if settings.model is None:
        return simulated_card(settings.served_name)
    return load_card(settings.served_name, settings.model)


class Program:
    """One life of the server process.

    Args:
        settings: Of the program.
        card: The model.
    """

    def __init__(self, settings: Settings, card: ModelCard) -> None:
        self._settings = settings
        clock = SystemClock()
        self._registry = LocalRegistry(settings.discovery) if settings.discovery else None
        secret = settings.service_token or (INSECURE_SECRET if settings.insecure else random_id())
        role = RoleState(initial=_initial(settings), capable=settings.capable, on_change=self._role_changed)
        self._engine = Engine(
            settings=settings,
            incarnation=random_id(),
            card=card,
            role=role,
            clock=clock,
            new_id=random_id,
            handover=Handover(
                instance_id=settings.instance_id,
                service_token=secret,
                link_host=settings.host,
                registry=self._registry,
                service=settings.service,
                clock=clock,
                new_id=random_id,
                core_send=self._tell_core,
                lease_ttl_ms=settings.lease_ttl_ms,
                on_pull_seconds=self._observe_pull,
            ),
        )
        self._hub = EventHub(self._engine.state)
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stop_wanted = asyncio.Event()
        self._registration: Registration | None = None
        self._kv_reserve: socket.socket | None = None
        self._kv_port = 0

    async def run(self) -> int:
        """Listen, load, serve and drain."""
        guard = Guard(
            token=self._settings.service_token, loopback=self._settings.loopback, insecure=self._settings.insecure
        )
        runner = build_runner(build_app(self._engine, self._hub, guard))
        await runner.setup()
        try:
            http_port = await self._listen(runner)
            self._engine.core = await CoreProcess.start(core_config(self._settings))
            return await self._run(http_port)
        except OSError as error:  # a taken port, a full disk, no descriptors: its text is the system's, not a user's
            log_exception("cannot-start", cause=os.strerror(error.errno) if error.errno else "")
            return EXIT_FAILED
        finally:
            await self._close(runner)

    async def _run(self, http_port: int) -> int:
        loop = asyncio.get_running_loop()
        # Before anybody is told that the program is here, so that an early SIGTERM drains as well.
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop_wanted.set)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._register(http_port)
            self._say_listening(http_port)
            tasks += [
                asyncio.create_task(self._guarded(work), name=work.__qualname__)
                for work in (self._core_messages, self._beat, self._role_timeout, self._drain_when_told)
            ]
            if self._settings.exit_with_stdin:
                when_stdin_ends(loop, partial(self._finish, EXIT_OK))
            return await self._end
        finally:
            for signal_number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(signal_number)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """A background task that fails takes the program with it, instead of leaving half of one."""
        try:
            await work()
        except Exception:
            log_exception("task-failed", task=getattr(work, "__qualname__", ""))
            self._finish(EXIT_FAILED)

    # --- start -----------------------------------------------------------------------------------------

    async def _listen(self, runner: web.AppRunner) -> int:
        settings = self._settings
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        await site.start()
        self._kv_reserve, self._kv_port = _reserve(settings.host, settings.kv_port)
        port: int = runner.addresses[0][1]
        return port

    async def _register(self, http_port: int) -> None:
        if self._registry is None:
            return
        settings, engine = self._settings, self._engine
        record = InstanceRecord(
            id=settings.instance_id,
            incarnation=engine.incarnation,
            service=settings.service,
            host=settings.host,
            http_port=http_port,
            kv_port=self._kv_port,
            model=engine.card.name,
        )
        self._registration = await self._registry.register(record)

    def _say_listening(self, http_port: int) -> None:
        line = {
            "event": "listening",
            "http_port": http_port,
            "kv_port": self._kv_port,
            "instance_id": self._settings.instance_id,
            "incarnation": self._engine.incarnation,
        }
        print(json.dumps(line), flush=True)

    # --- the core --------------------------------------------------------------------------------------

    async def _core_messages(self) -> None:
        core = self._engine.core
        if core is None:
            return
        try:
            async for message in core.messages():
                await self._take(message)
        except ConnectionError:
            log_exception("channel-broken")
        self._core_lost()

    async def _take(self, message: Outbox) -> None:
        engine = self._engine
        if isinstance(message, CoreStats):
            engine.stats = message
        elif isinstance(message, KVChanged):
            self._hub.kv(stored=message.stored, removed=message.removed, prefix=message.prefix)
        elif isinstance(message, Progress):
            engine.role.load_progress(message.percent, message.text)
            self._hub.full()
        elif isinstance(message, Ready):
            await self._ready(message)
        elif isinstance(message, CoreFailed):
            log(LOG_ERROR, "core-failed", reason=message.message)
            engine.role.apply(PhaseEvent.LOAD_FAILED, message.message)
            engine.role.apply(PhaseEvent.CORE_LOST, message.message)
        else:
            if isinstance(message, AuditResult) and message.faults:
                log(LOG_ERROR, "block-audit", faults=message.faults)
            engine.table.dispatch(message)

    async def _ready(self, ready: Ready) -> None:
        engine = self._engine
        if engine.core is None:
            return
        pool = engine.core.map_pool(ready.layout)
        if self._kv_reserve is not None:
            self._kv_reserve.close()
            self._kv_reserve = None
        await engine.handover.start(ready, pool, self._kv_port)
        engine.ready = ready
        engine.role.apply(PhaseEvent.LOADED)
        log(LOG_INFO, "loaded", model=engine.card.name, blocks=ready.layout.num_blocks, max_context=ready.max_context)

    def _core_lost(self) -> None:
        """The core is gone: every open request ends with one clean error, then the program."""
        if self._end.done():
            return
        engine = self._engine
        log(LOG_ERROR, "core-lost", returncode=engine.core.returncode if engine.core else None)
        engine.role.apply(PhaseEvent.CORE_LOST, engine.role.message or CORE_LOST)
        engine.table.core_lost()
        asyncio.get_running_loop().call_later(CLOSING_S, self._finish, EXIT_FAILED)

    def _tell_core(self, message: object) -> None:
        with contextlib.suppress(ConnectionError):
            self._engine.send(message)  # type: ignore[arg-type]

    def _observe_pull(self, seconds: float) -> None:
        self._engine.metrics.observe("triptych_handover_seconds", seconds)

    # --- while it serves -------------------------------------------------------------------------------

    def _role_changed(self) -> None:
        self._hub.full()

    async def _beat(self) -> None:
        engine = self._engine
        while True:
            await asyncio.sleep(BEAT_MS / 1000)
            if engine.role.phase is Phase.DRAINING and engine.idle:
                engine.role.apply(PhaseEvent.EMPTY)
            self._hub.load(engine.sample())

    async def _role_timeout(self) -> None:
        await asyncio.sleep(self._settings.role_timeout_s)
        if self._engine.role.fall_back():
            log(LOG_INFO, "role-fallback", role=self._engine.role.assignment.role.value)

    async def _drain_when_told(self) -> None:
        await self._stop_wanted.wait()
        engine = self._engine
        log(LOG_INFO, "draining", requests=engine.table.calls, leases=engine.handover.leases)
        engine.role.drain_for_good()
        try:
            async with asyncio.timeout(self._settings.drain_s):
                while not engine.idle:  # noqa: ASYNC110 - requests and leases end in many places
                    await asyncio.sleep(0.02)
        except TimeoutError:
            engine.table.close(ENDING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    while engine.table.calls:  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.02)
        engine.role.apply(PhaseEvent.EMPTY)
        self._finish(EXIT_OK)

    # --- end -------------------------------------------------------------------------------------------

    def _finish(self, status: int) -> None:
        if not self._end.done():
            self._end.set_result(status)

    async def _close(self, runner: web.AppRunner) -> None:
        """Leave nothing behind: record, streams, links, core, in this order, each even if one before it fails."""
        async with contextlib.AsyncExitStack() as last_first:
            if self._engine.core is not None:
                last_first.push_async_callback(self._engine.core.stop)
            if self._kv_reserve is not None:
                last_first.callback(self._kv_reserve.close)
            last_first.push_async_callback(self._engine.handover.stop)
            last_first.push_async_callback(runner.cleanup)
            last_first.callback(self._hub.close)
            last_first.callback(self._engine.table.close, ENDING)
            if self._registration is not None:
                last_first.push_async_callback(self._registration.withdraw)


def _initial(settings: Settings) -> Assignment:
    return Assignment(settings.role, 0 if settings.role is Role.UNASSIGNED else 1)


def _reserve(host: str, port: int) -> tuple[socket.socket, int]:
    """A bound port that does not listen yet: its number is told before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserve = socket.socket(family, socket.SOCK_STREAM)
    reserve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserve.bind((host, port))
    except OSError:
        reserve.close()
        raise
    return reserve, int(reserve.getsockname()[1])
