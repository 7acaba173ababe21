"""Pure: whole server-sent events out of chunks cut anywhere.

Chunk borders mean nothing. An event ends with an empty line; the unfinished tail of a leg that died is dropped,
so a client never sees half an event.
"""

import re
from collections.abc import Sequence

from triptych_contract.errors import TriptychError, UpstreamFailed, parse_error

MAX_EVENT_BYTES = 1024 * 1024
DONE = b"data: [DONE]\n\n"
_END = re.compile(rb"\r?\n\r?\n")
_ERROR = re.compile(rb'data:\s*\{\s*"error"\s*:')


class EventSplitter:
    """Collects bytes until an event is whole."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._returns = False
        self._max_event_bytes = max_event_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes of the event that is not whole yet."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes, each with its empty line.

        Raises:
            UpstreamFailed: An event is larger than the bound.
        """
        self._buffer += chunk
        self._returns = self._returns or b"\r" in chunk
        start = 0
        events = []
        while (end := self._end(max(start, self._searched))) >= 0:
            events.append(bytes(self._buffer[start:end]))
            start = self._searched = end
        del self._buffer[:start]
        # an end of up to four bytes may stand across the border
        self._searched = max(0, len(self._buffer) - 3)
        if len(self._buffer) > self._max_event_bytes:
            raise UpstreamFailed("The instance sent an event that is too large.")
        return events

    def _end(self, at: int) -> int:
        """Where the next event is over, -1 if none is; a stream without carriage returns is searched plainly."""
        if self._returns:
            found = _END.search(self._buffer, at)
            return found.end() if found else -1
        found_at = self._buffer.find(b"\n\n", at)
        return found_at + 2 if found_at >= 0 else -1


def is_done(event: bytes) -> bool:
    """True for the event that ends a stream."""
    return event.startswith(b"data: [DONE]")


def error_of(event: bytes) -> TriptychError | None:
    """The error that an event carries, if it carries one."""
    if not _ERROR.match(event):
        return None
    return parse_error(event.partition(b":")[2].strip())


def first_error(events: Sequence[bytes]) -> TriptychError | None:
    """The first error that one of the events carries; looked for only where the word stands as a member's name."""
    for event in events:
        if b'"error"' in event and (error := error_of(event)) is not None:
            return error
    return None


def error_events(error: TriptychError) -> bytes:
    """One error event and the end of the stream."""
    return b"data: " + error.json() + b"\n\n" + DONE
