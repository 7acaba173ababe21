"""The hub of the state stream: every reader gets the same events under the same numbers, without a gap.

A reader that falls behind is cut off; it comes back and begins with the full state.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from triptych_contract.codec import encode_json
from triptych_contract.errors import Overloaded
from triptych_contract.instance import FullState, InstanceState, KVRemoved, KVStored, Load, LoadSample

MAX_BEHIND = 256
MAX_READERS = 64
"""Readers at a time; more are refused."""


class EventHub:
    """Fans state events out.

    Args:
        state: The full state at this moment.
    """

    def __init__(self, state: Callable[[], InstanceState]) -> None:
        self._state = state
        self._seq = 0
        self._readers: dict[asyncio.Queue[bytes | None], None] = {}

    def full(self) -> None:
        """Role or phase has changed."""
        if self._readers:
            self._publish(encode_json(FullState(self._next(), self._state())))

    def load(self, sample: LoadSample) -> None:
        """A heartbeat."""
        if self._readers:
            self._publish(encode_json(Load(self._next(), sample)))

    def kv(self, *, stored: tuple[str, ...], removed: tuple[str, ...], prefix: str) -> None:
        """Blocks became reusable or stopped being so."""
        if not self._readers:
            return
        if removed:
            self._publish(encode_json(KVRemoved(self._next(), removed)))
        if stored:
            self._publish(encode_json(KVStored(self._next(), stored, prefix)))

    def check_room(self) -> None:
        """Raise `Overloaded` if there are as many readers as there may be."""
        if len(self._readers) >= MAX_READERS:
            raise Overloaded("Too many readers follow this instance.", retry_after_ms=1000)

    def close(self) -> None:
        """End all streams."""
        for reader in list(self._readers):
            self._cut(reader)

    async def lines(self) -> AsyncIterator[bytes]:
        """NDJSON lines for one reader; ends when the reader is too far behind or the program ends."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_BEHIND)
        self._readers[queue] = None
        try:
            yield encode_json(FullState(self._seq, self._state())) + b"\n"
            while (line := await queue.get()) is not None:
                yield line
        finally:
            self._readers.pop(queue, None)

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _publish(self, event: bytes) -> None:
        line = event + b"\n"
        for reader in list(self._readers):
            try:
                reader.put_nowait(line)
            except asyncio.QueueFull:
                self._cut(reader)

    def _cut(self, reader: "asyncio.Queue[bytes | None]") -> None:
        self._readers.pop(reader, None)
        while not reader.empty():
            reader.get_nowait()
        reader.put_nowait(None)
