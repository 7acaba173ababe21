"""Calls that are open at the core: whatever comes out of it finds its call, and each call ends exactly once.

A call is one HTTP request with one prompt or several. Leaving `RequestTable.open` cancels at the core whatever
of it has not ended, so that a vanished client costs no further step.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from triptych_contract.errors import Internal, Overloaded, RequestTimeout, TriptychError, from_code
from triptych_engine.messages import (
    Audit,
    AuditResult,
    Cancel,
    Delta,
    Deltas,
    Encode,
    Encoded,
    Inbox,
    LeaseGranted,
    Outbox,
    PullEnded,
    PullWanted,
    Rejected,
    ReleaseLease,
    Submit,
)

CORE_LOST = "The engine's core has failed; the request cannot go on."
MAX_BEHIND = 16_384
"""Events of one call that may wait for its client; a client that reads so slowly is given up."""
MAX_BEHIND_PER_CHOICE = 64
"""The same for calls with very many choices, of which each step may bring one event."""


class Tokens(NamedTuple):
    """Tokens of one choice, with the time of the step that made them."""

    at_s: float
    delta: Delta


MAX_CALLS = 4096
Event = Tokens | LeaseGranted | PullWanted | Encoded | AuditResult
Question = Submit | Encode | Audit
"""What the core answers."""


class OpenCall:
    """What the core says about one call, in order.

    Bounded by the call's own number of output tokens, and by `MAX_BEHIND`: a client that does not read what it
    asked for costs no more than that, and no further step.

    Args:
        choices: For each request id the number of choices that are to end; 0 if it ends by one answer.
        send: Sends a message to the core.
    """

    def __init__(self, choices: dict[str, int], *, send: Callable[[Inbox], None]) -> None:
        self._running = {id_: set(range(max(1, count))) for id_, count in choices.items()}
        self._send = send
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._error: TriptychError | None = None
        self._unclaimed: str = ""
        self._pulling: set[str] = set()
        self._max_behind = max(MAX_BEHIND, MAX_BEHIND_PER_CHOICE * sum(choices.values()))

    async def next(self) -> Event:
        """The next thing that the core says.

        Raises:
            TriptychError: The call has ended with an error.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, LeaseGranted):
            self._unclaimed = ""
        return event

    def end_choice(self, request_id: str, choice: int) -> None:
        """The server has enough of a choice (a stop string); the core is told, what still comes is dropped."""
        if choice in self._running.get(request_id, ()):
            self._send(Cancel(request_id, choice))
            self._finish(request_id, choice)

    def pull_ended(self, message: PullEnded) -> None:
        """Tell the core how a pull ended: nothing writes into its blocks any more."""
        self._pulling.discard(message.id)
        self._send(message)

    def take(self, at_s: float, delta: Delta) -> None:
        """Tokens from the core."""
        if delta.choice in self._running.get(delta.id, ()):
            if delta.finish_reason is not None:
                self._finish(delta.id, delta.choice)
            self._put(Tokens(at_s, delta))
            if len(self._events) > self._max_behind:
                self._cancel()
                self.fail(RequestTimeout("The answer was not read in time."))

    def take_message(self, message: Rejected | LeaseGranted | Encoded | AuditResult | PullWanted) -> None:
        """An error, the one answer that ends a request without tokens, or room for blocks.

        The core keeps that room until it is told that the pull has ended.
        """
        if isinstance(message, Rejected):
            error = from_code(message.code, message.message)
            error.retry_after_ms = message.retry_after_ms
            self.fail(error, message.id)
            return
        if isinstance(message, PullWanted):
            self._pulling.add(message.id)
        else:
            self._running.pop(message.id, None)
        if isinstance(message, LeaseGranted):
            self._unclaimed = message.lease
        self._put(message)

    def fail(self, error: TriptychError, request_id: str | None = None) -> None:
        """End the call with an error; of a request id that the core has ended itself, it is not told again."""
        if request_id is None:
            self._running.clear()
        else:
            self._running.pop(request_id, None)
        self._error = self._error or error
        self._arrived.set()

    def close(self) -> None:
        """Cancel at the core what has not ended, and give back a lease that nobody took and room for a pull.

        Called when nothing writes into the blocks of a pull any more; until then the core keeps them, even of
        a request that it was told to cancel.
        """
        self._cancel()
        for request_id in self._pulling:
            self._send(_not_pulled(request_id))
        if self._unclaimed:
            self._send(ReleaseLease(self._unclaimed))
        self._pulling, self._unclaimed = set(), ""

    def _cancel(self) -> None:
        running, self._running = self._running, {}
        for request_id in running:
            self._send(Cancel(request_id))

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    def _finish(self, request_id: str, choice: int) -> None:
        running = self._running[request_id]
        running.discard(choice)
        if not running:
            del self._running[request_id]


class RequestTable:
    """All open calls by request id.

    Args:
        send: Sends a message to the core; raises `ConnectionError` once it is gone.
        max_calls: Most calls of the OpenAI API at a time, from their first byte on.
    """

    def __init__(self, send: Callable[[Inbox], None], *, max_calls: int = MAX_CALLS) -> None:
        self._core_send = send
        self._max_calls = max_calls
        self._open: dict[str, OpenCall] = {}
        self._closed: TriptychError | None = None
        self._lost = False
        self.calls = 0

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def open(self, messages: Sequence[Question]) -> Iterator[OpenCall]:
        """Send the messages of one call and collect what the core says about them.

        Raises:
            TriptychError: The core is gone or too far behind, or the program ends.
        """
        if self._closed is not None:
            raise self._closed
        choices = {message.id: message.sampling.n if isinstance(message, Submit) else 0 for message in messages}
        call = OpenCall(choices, send=self._tell)
        try:
            for message in messages:
                self._open[message.id] = call
                self._send(message)
            yield call
        finally:
            for request_id in choices:
                self._open.pop(request_id, None)
            call.close()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count an HTTP request of the OpenAI API while it is open.

        Raises:
            Overloaded: There are too many; nothing of this one has been read.
        """
        if self.calls >= self._max_calls:
            raise Overloaded("Too many requests are open here.", retry_after_ms=1000)
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    def dispatch(self, message: Outbox) -> None:
        """Hand a message of the core to its call; an answer that nobody waits for frees what it holds."""
        if isinstance(message, Deltas):
            for delta in message.items:
                if (call := self._open.get(delta.id)) is not None:
                    call.take(message.at_s, delta)
        elif isinstance(message, Rejected | LeaseGranted | Encoded | AuditResult | PullWanted):
            call = self._open.get(message.id)
            if call is not None:
                call.take_message(message)
            elif isinstance(message, LeaseGranted):
                self._tell(ReleaseLease(message.lease))
            elif isinstance(message, PullWanted):
                self._tell(_not_pulled(message.id))

    def core_lost(self, message: str = CORE_LOST) -> None:
        """The core is gone: open calls end, and no new one begins."""
        self._lost = True
        self.close(Internal(message))

    def close(self, error: TriptychError) -> None:
        """End all open calls with an error and free their blocks at the core; no new call begins."""
        self._closed = error
        for request_id, call in list(self._open.items()):
            self._tell(Cancel(request_id))
            call.fail(error)

    def _send(self, message: Inbox) -> None:
        try:
            self._core_send(message)
        except ConnectionError:
            raise Internal(CORE_LOST) from None

    def _tell(self, message: Inbox) -> None:
        """Send what only frees things; a core that is gone has freed them."""
        if self._lost:
            return
        try:
            self._core_send(message)
        except ConnectionError:
            return


def _not_pulled(request_id: str) -> PullEnded:
    """Nobody pulls these blocks, and nobody will."""
    return PullEnded(request_id, ok=False, reason="cancelled")
