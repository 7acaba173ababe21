"""The legs of one request: build what is spliced in, call an instance, read the answer.

Every leg is charged to its instance while it runs and takes its charge back however it ends. A leg that leaves
something at its instance names the lease for it, new for each attempt: whatever ends the leg before its ticket
was read, the lease is given back by that name.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec

from triptych_contract.codec import decode_json
from triptych_contract.errors import BadRequest, TriptychError, UpstreamFailed
from triptych_contract.handover import MEMBERS, EmbeddingTicket, Ticket
from triptych_contract.headers import SERVED_BY
from triptych_contract.instance import InstanceRecord
from triptych_contract.roles import Stage
from triptych_router.api.parse import PATHS
from triptych_router.api.scan import splice
from triptych_router.cluster.view import InstanceView, base_url
from triptych_router.dispatch.attempt import attempt, read_whole
from triptych_router.dispatch.context import Context, leg_headers
from triptych_router.dispatch.ledger import Ledger
from triptych_router.dispatch.outcome import Journey
from triptych_router.dispatch.relay import Whole, read_answer, relay_events
from triptych_router.dispatch.reply import Reply
from triptych_router.dispatch.retry import Cause, LegFailed
from triptych_router.dispatch.services import Services

T = TypeVar("T")
MAX_TICKET_BYTES = 1024 * 1024
_TRANSFER, _TRIPTYCH = MEMBERS


class _PrefillAnswer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw


class _Encoded(msgspec.Struct):
    embeddings: msgspec.Raw


class _EncodeAnswer(msgspec.Struct):
    triptych: _Encoded


@dataclass(frozen=True, slots=True)
class Held:
    """A ticket, relayed as received, and the lease that it names.

    Attributes:
        raw: The ticket's JSON.
        record: The instance that holds the lease.
        lease: Its id.
        ttl_ms: Its life without a renewal.
        link_class: Of the holder; only equal ones can take over.
    """

    raw: bytes
    record: InstanceRecord
    lease: str
    ttl_ms: int
    link_class: str


class Legs:
    """Calls for one request; each raises `LegFailed` if the attempt brought no answer.

    `last` is the instance of the latest attempt.
    """

    def __init__(self, services: Services, context: Context, journey: Journey, reply: Reply) -> None:
        self._services = services
        self._context = context
        self._journey = journey
        self._reply = reply
        self._ledger = Ledger()
        self.last: InstanceView | None = None

    @property
    def ledger(self) -> Ledger:
        """What the client has got."""
        return self._ledger

    async def encode(self, instance: InstanceView) -> Held:
        """Embed the images; the answer names the embeddings."""
        with self._lease(instance) as lease:
            body = splice(self._context.parsed.body, _TRIPTYCH, b'{"encode":true,"lease":"%b"}' % lease)
            answer = await self._ask(Stage.ENCODE, instance, body, prefill_tokens=0)
            raw = bytes(_read(answer, _EncodeAnswer, Stage.ENCODE).triptych.embeddings)
            return _held(raw, _read(raw, EmbeddingTicket, Stage.ENCODE), instance, Stage.ENCODE)

    async def prefill(self, instance: InstanceView, images: Held | None) -> Held:
        """Compute the prompt; the answer is the ticket for its blocks."""
        taken = b',"embeddings":' + images.raw if images is not None else b""
        prompt_tokens = self._context.parsed.prompt_tokens
        with self._lease(instance) as lease:
            wanted = b'{"do_remote_decode":true,"lease":"%b"%b}' % (lease, taken)
            body = splice(self._context.parsed.body, _TRANSFER, wanted)
            answer = await self._ask(Stage.PREFILL, instance, body, prefill_tokens=prompt_tokens)
            raw = bytes(_read(answer, _PrefillAnswer, Stage.PREFILL).kv_transfer_params)
            return _held(raw, _read(raw, Ticket, Stage.PREFILL), instance, Stage.PREFILL)

    async def decode(self, instance: InstanceView, ticket: Held) -> TriptychError | None:
        """Pull, sample, and answer the client; returns the error that ended a stream which had begun."""
        body = splice(self._context.parsed.body, _TRANSFER, ticket.raw)
        return await self._answer(instance, body, prefill_tokens=0)

    async def alone(self, instance: InstanceView, images: Held | None) -> TriptychError | None:
        """Prefill and decode on one instance; without images the body is the client's own, byte for byte."""
        body = self._context.parsed.body
        if images is not None:
            body = splice(body, _TRIPTYCH, b'{"embeddings":' + images.raw + b"}")
        self._journey.served_by[Stage.PREFILL] = instance.id
        return await self._answer(instance, body, prefill_tokens=self._context.parsed.prompt_tokens)

    @contextlib.contextmanager
    def _lease(self, instance: InstanceView) -> Iterator[bytes]:
        """An id for what the leg of this block leaves at the instance; given back unless the ticket was read."""
        lease = self._services.new_id()
        try:
            yield lease.encode()
        except BaseException as error:
            if not (isinstance(error, LegFailed) and error.left_nothing):
                self._services.leases.release(instance.record, lease)
            raise

    async def _ask(self, stage: Stage, instance: InstanceView, body: bytes, *, prefill_tokens: int) -> bytes:
        """A leg whose answer is for the router."""
        self._journey.served_by[stage] = instance.id
        key = (instance.record.id, instance.record.incarnation)
        charge = self._services.book.charge(key, prefill_tokens=prefill_tokens, output_tokens=0)

        def read(answer: aiohttp.ClientResponse) -> Awaitable[bytes]:
            return read_whole(answer, stage, MAX_TICKET_BYTES)

        try:
            return await self._attempt(stage, instance, body, read, ledger=False)
        finally:
            charge.close()

    async def _answer(self, instance: InstanceView, body: bytes, *, prefill_tokens: int) -> TriptychError | None:
        """The leg whose answer is the client's."""
        parsed, journey = self._context.parsed, self._journey
        journey.served_by[Stage.DECODE] = instance.id
        headers = {SERVED_BY: journey.route()} if self._services.expose_route else {}
        key = (instance.record.id, instance.record.incarnation)
        expected_tokens = parsed.output_tokens * parsed.choices * parsed.prompts
        charge = self._services.book.charge(key, prefill_tokens=prefill_tokens, output_tokens=expected_tokens)
        first = self._first_event(charge.prefilled)

        def relay(answer: aiohttp.ClientResponse) -> Awaitable[Whole | TriptychError | None]:
            if answer.content_type == "text/event-stream":
                return relay_events(answer, self._reply, self._ledger, headers=headers, first=first)
            return read_answer(answer)

        try:
            ended = await self._attempt(Stage.DECODE, instance, body, relay, ledger=parsed.stream)
        except LegFailed as failure:
            failure.delivered = self._reply.started
            raise
        finally:
            charge.close()
        if not isinstance(ended, Whole):
            return ended
        first()
        await self._reply.whole(200, ended.body, {"content-type": ended.content_type, **headers})
        return None

    def _first_event(self, prefilled: Callable[[], None]) -> Callable[[], None]:
        """Called before each write to the client; the first call counts."""

        def first() -> None:
            prefilled()
            if self._journey.first_event_s is None:
                self._journey.first_event_s = self._services.clock.now_s()

        return first

    async def _attempt(
        self,
        stage: Stage,
        instance: InstanceView,
        body: bytes,
        use: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        *,
        ledger: bool,
    ) -> T:
        services, self.last = self._services, instance
        number = self._journey.attempts[stage] = self._journey.attempts.get(stage, 0) + 1
        headers = leg_headers(
            self._context, instance, attempt=number, token=services.token, now_s=services.clock.now_s(), ledger=ledger
        )
        url = base_url(instance.record) + PATHS[self._context.parsed.kind]
        life = services.watch.life(instance.record)
        outcome = "cancelled"
        try:
            result = await attempt(services.session, life, use, stage=stage, url=url, body=body, headers=headers)
            outcome = "ok"
            return result
        except LegFailed as failure:
            outcome = failure.cause.value
            raise
        finally:
            services.telemetry.attempted(stage.value, outcome)


def _read(data: bytes, kind: type[T], stage: Stage) -> T:
    try:
        return decode_json(data, kind, limit_bytes=MAX_TICKET_BYTES)
    except TriptychError:
        raise _bad_ticket(stage) from None


def _held(raw: bytes, ticket: Ticket | EmbeddingTicket, instance: InstanceView, stage: Stage) -> Held:
    try:
        ticket.check()
    except BadRequest:
        raise _bad_ticket(stage) from None
    return Held(raw, instance.record, ticket.lease, ticket.ttl_ms, instance.state.link_class)


def _bad_ticket(stage: Stage) -> LegFailed:
    return LegFailed(stage, Cause.REFUSED, UpstreamFailed("The instance did not answer with a sound ticket."))
