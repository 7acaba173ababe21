"""An engine without a model, in this process: instance API, OpenAI API and tickets, doing what a test tells it.

`script` holds what the next legs do, in order; an empty script serves well. Everything that arrives is counted.
"""

import asyncio
import contextlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from triptych_contract.errors import TriptychError, from_code
from triptych_contract.handover import EmbeddingTicket, LeaseRenewal, Ticket
from triptych_contract.instance import FullState, InstanceRecord, InstanceState, Load, LoadSample
from triptych_contract.ledger import LedgerEntry, format_entry
from triptych_contract.profile import StepProfile
from triptych_contract.registry import MemoryRegistry
from triptych_contract.roles import STAGES, Phase, Role, Stage

TOKEN = "a service token of the tests".replace(" ", "-")
TTL_MS = 600


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(frozen=True)
class Act:
    """What one leg does: refuse with a code, die before or after so many events, hang, or answer oddly."""

    refuse: str = ""
    die_after: int | None = None
    hang: bool = False
    attempt: str = ""
    error_event_after: int | None = None


@dataclass
class Leg:
    """One call as it arrived."""

    stage: Stage
    body: bytes
    headers: dict[str, str]


@dataclass
class FakeEngine:
    """One instance; `start` registers it."""

    id: str
    role: Role
    events: int = 4
    link_class: str = "tcp-1"
    model: str = "sim"
    service: str = "default"
    profile: StepProfile = field(default_factory=StepProfile)
    event_gap_s: float = 0.0
    padding: str = ""
    beat_s: float = 0.1
    act: Act | None = None
    script: deque[Act] = field(default_factory=deque)
    legs: list[Leg] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    leases: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)
    renewed: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    running: int = 0
    load: LoadSample = field(default_factory=LoadSample)
    epoch: int = 1
    phase: Phase = Phase.SERVING
    mute: bool = False
    port: int = 0
    incarnation: str = "0" * 32
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _legs_open: set[asyncio.Transport] = field(default_factory=set)
    may_answer: asyncio.Event = field(default_factory=_set)

    async def start(self, registry: MemoryRegistry) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/instance/events", self._events)
        app.router.add_route("*", "/instance/leases/{id}", self._lease)
        app.router.add_post("/v1/chat/completions", self._serve)
        app.router.add_post("/v1/completions", self._serve)
        app.router.add_post("/tokenize", self._tokenize)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.registration = await registry.register(self.record())

    def cut(self) -> None:
        """Break the connections of all legs that run; the instance itself goes on."""
        for transport in self._legs_open:
            transport.abort()

    async def stop(self, *, withdraw: bool = True) -> None:
        """Gone, as after kill -9: every connection breaks at once."""
        if withdraw:
            await self.registration.withdraw()
        if self._runner.server is None:
            return
        for handler in list(self._runner.server.connections):
            if handler.transport is not None:
                handler.transport.abort()
        await self._runner.cleanup()

    def record(self) -> InstanceRecord:
        return InstanceRecord(self.id, self.incarnation, self.service, "127.0.0.1", self.port, 1, model=self.model)

    def state(self) -> InstanceState:
        return InstanceState(
            id=self.id,
            incarnation=self.incarnation,
            service=self.service,
            capable=tuple(Stage),
            role=self.role,
            epoch=self.epoch,
            phase=self.phase,
            model=self.model,
            link_class=self.link_class,
            profile=self.profile,
            load=self.load,
            max_context=4096,
        )

    def of(self, stage: Stage) -> list[Leg]:
        return [leg for leg in self.legs if leg.stage is stage]

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _error(from_code("invalid_api_key", "no"))
        self.calls["events"] += 1
        response = web.StreamResponse()
        await response.prepare(request)
        said, seq = None, 0
        while True:
            if not self.mute:
                state = self.state()
                event = (
                    Load(seq, self.load) if said == (state.role, state.epoch, state.phase) else FullState(seq, state)
                )
                said = (state.role, state.epoch, state.phase)
                await response.write(msgspec.json.encode(event) + b"\n")
                seq += 1
            await asyncio.sleep(self.beat_s)

    async def _lease(self, request: web.Request) -> web.Response:
        lease = request.match_info["id"]
        if request.method == "DELETE":
            self.leases.discard(lease)
            self.released.append(lease)
            return web.json_response({})
        self.renewed[lease] += 1
        return web.Response(body=msgspec.json.encode(LeaseRenewal(lease, TTL_MS)))

    async def _tokenize(self, request: web.Request) -> web.Response:
        if self.act is not None and self.act.die_after == 0:
            return _die(request)
        return web.json_response({"tokens": [1, 2], "count": 2, "padding": self.padding})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        transport = request.transport
        assert transport is not None
        self._legs_open.add(transport)
        try:
            return await self._leg(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._legs_open.discard(transport)
            self.running -= 1

    async def _leg(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        stage = _stage(body)
        self.legs.append(Leg(stage, raw, {name.lower(): value for name, value in request.headers.items()}))
        self.arrived.set()
        act = self.script.popleft() if self.script else self.act or Act()
        echo = {"x-triptych-attempt": act.attempt or request.headers.get("x-triptych-attempt", "1")}
        needed = Stage.DECODE if stage is Stage.DECODE else stage
        if act.hang:
            await asyncio.sleep(3600)
        if act.refuse:
            return _error(from_code(act.refuse, "The fake refuses."))
        if needed not in STAGES[self.role] or request.headers.get("x-triptych-epoch") != str(self.epoch):
            return _error(from_code("moved", "The role has changed."))
        if act.die_after == 0:
            return _die(request)
        if stage is Stage.DECODE:
            return await self._decode(request, body, act, echo)
        ticket = self._ticket(stage, body)
        await self.may_answer.wait()
        return web.json_response(ticket, headers=echo)

    def _ticket(self, stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
        wanted = body.get("triptych") or body.get("kv_transfer_params") or {}
        lease = wanted.get("lease") or f"{len(self.legs):032x}"
        self.leases.add(lease)
        answer = {**_completion("", "length"), "id": "x"}
        if stage is Stage.ENCODE:
            embeddings = EmbeddingTicket(self.id, "127.0.0.1", 1, lease, TTL_MS, ("0" * 64,))
            return {**answer, "triptych": {"embeddings": msgspec.to_builtins(embeddings)}}
        ticket = Ticket(self.id, "r", "127.0.0.1", 1, 30, 0.0, lease, TTL_MS, self.link_class)
        return {**answer, "kv_transfer_params": {**msgspec.to_builtins(ticket), "unknown_member": [1]}}

    def _padded(self) -> dict[str, str]:
        return {"padding": self.padding} if self.padding else {}

    async def _decode(
        self, request: web.Request, body: dict[str, Any], act: Act, echo: dict[str, str]
    ) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        if not body.get("stream"):
            await asyncio.sleep(self.event_gap_s * self.events)
            return web.json_response(_completion(_text(self.events) + self.padding, "stop", chat=chat), headers=echo)
        response = web.StreamResponse(headers={**echo, "content-type": "text/event-stream"})
        await response.prepare(request)
        for index in range(self.events):
            if act.die_after == index:
                return _die(request)
            if act.error_event_after == index:
                error = from_code("internal_error", "The fake failed.")
                await response.write(b"data: " + error.json() + b"\n\ndata: [DONE]\n\n")
                return response
            chunk = _chunk(index, last=index == self.events - 1, chat=chat)
            line = (
                format_entry(LedgerEntry(0, index, (index,), f"c{index}"))
                if "x-triptych-ledger" in request.headers
                else b""
            )
            await response.write(line + b"data: " + json.dumps(chunk | self._padded()).encode() + b"\n\n")
            await asyncio.sleep(self.event_gap_s)
        await response.write(b"data: [DONE]\n\n")
        return response


def _stage(body: dict[str, Any]) -> Stage:
    if (body.get("triptych") or {}).get("encode"):
        return Stage.ENCODE
    if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
        return Stage.PREFILL
    return Stage.DECODE


def _text(events: int) -> str:
    return "".join(f"t{index} " for index in range(events))


def _completion(text: str, finish: str, *, chat: bool = False) -> dict[str, Any]:
    usage = {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}
    base: dict[str, Any] = {"id": "cmpl-1", "created": 1, "model": "sim", "usage": usage}
    if chat:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {**base, "object": "chat.completion", "choices": [choice]}
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    return {**base, "object": "text_completion", "choices": [choice]}


def _chunk(index: int, *, last: bool, chat: bool) -> dict[str, Any]:
    finish = "stop" if last else None
    base = {"id": "c", "created": 1, "model": "sim"}
    if chat:
        choice = {"index": 0, "delta": {"content": f"t{index} "}, "finish_reason": finish, "logprobs": None}
        return {**base, "object": "chat.completion.chunk", "choices": [choice]}
    choice = {"index": 0, "text": f"t{index} ", "finish_reason": finish, "logprobs": None}
    return {**base, "object": "text_completion", "choices": [choice]}


def _error(error: TriptychError) -> web.Response:
    return web.Response(status=error.status, body=error.json(), content_type="application/json")


def _die(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


@contextlib.asynccontextmanager
async def running(registry: MemoryRegistry, *engines: FakeEngine) -> AsyncIterator[None]:
    """These engines, for as long as the block runs."""
    for number, engine in enumerate(engines):
        engine.incarnation = f"{number + 1:032x}"
        await engine.start(registry)
    try:
        yield
    finally:
        for engine in engines:
            await engine.stop()


async def until(condition: Callable[[], bool], *, what: str, deadline_s: float = 5.0) -> None:
    """Wait for a condition of this process."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s} s: {what}") from None
