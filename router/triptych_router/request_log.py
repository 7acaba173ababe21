"""The one line at the end of each request, on stderr like all other logs, at a cost that is not noticed.

Lines are encoded at once, gathered for a moment, and written by a thread, so that a slow terminal, pipe or disk
holds up no request. What waits has a bound; over it lines are dropped, and a line says how many.
"""

import asyncio
import json
import os
import queue
import threading
import time
from collections.abc import Callable

import msgspec

GATHER_S = 0.1
"""Longest time between the end of a request and the write of its line."""
MAX_WAITING_BYTES = 4 * 1024 * 1024
CLOSE_S = 2.0
"""Time for the last lines of a program that ends."""


class RequestLine(msgspec.Struct, kw_only=True):
    """What a line says; never the text of a user. The time is filled in when it is written down."""

    time: str = ""
    level: str = "info"
    event: str = "request"
    request_id: str
    tenant: str
    model: str
    route: str
    shape: str
    reason: str
    attempts: dict[str, int]
    prompt_tokens: int
    tokens: int
    ttft_s: float | None
    queued_s: float
    seconds: float
    outcome: str
    code: str


class _Dropped(msgspec.Struct, kw_only=True):
    time: str
    level: str = "warning"
    event: str = "request lines dropped"
    count: int


def to_stderr(data: bytes) -> None:
    """Write all of it; raises `OSError`."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(2, rest) :]


class RequestLog:
    """Belongs to the loop; `close` writes what waits.

    Args:
        write: Writes bytes and may block; called from the log's own thread.
        unix_s: Wall clock.
        max_waiting_bytes: Bound of what waits to be written.
    """

    def __init__(
        self,
        write: Callable[[bytes], None] = to_stderr,
        *,
        unix_s: Callable[[], float] = time.time,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._write = write
        self._unix_s = unix_s
        self._max_waiting_bytes = max_waiting_bytes
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._dropped = 0
        self._second = (-1, "")
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._written = threading.Event()
        self._written.set()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def add(self, line: RequestLine) -> None:
        """Take a line."""
        line.time = self._now()
        self._take(_encode(line))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush)

    def close(self) -> None:
        """Write what waits, within a deadline, and end the thread."""
        if self._timer is not None:
            self._timer.cancel()
        if self._written.wait(CLOSE_S):
            self._hand_over()
        self._batches.put(None)
        self._thread.join(CLOSE_S)

    def _take(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > self._max_waiting_bytes:
            self._dropped += 1
            return
        self._lines.append(line)
        self._waiting_bytes += len(line)

    def _flush(self) -> None:
        """Give the thread what waits, or look again if it is still writing."""
        self._timer = None
        if self._written.is_set():
            self._hand_over()
        else:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush)

    def _hand_over(self) -> None:
        if self._dropped:
            self._lines.append(_encode(_Dropped(time=self._now(), count=self._dropped)))
        if not self._lines:
            return
        batch = b"".join(self._lines)
        self._lines, self._waiting_bytes, self._dropped = [], 0, 0
        self._written.clear()
        self._batches.put(batch)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._write(batch)
            except OSError:
                pass  # nobody reads, or the disk is full: serving goes on without these lines
            finally:
                self._written.set()

    def _now(self) -> str:
        """The time as all logs write it; the part that stays the same for a second is made once in it."""
        unix_s = self._unix_s()
        second = int(unix_s)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((unix_s - second) * 1000):03d}Z"


def _encode(line: msgspec.Struct) -> bytes:
    """One line; what is not ASCII is escaped, so that no name drives a terminal."""
    data = msgspec.json.encode(line)
    if not data.isascii():
        data = json.dumps(msgspec.to_builtins(line)).encode()
    return data + b"\n"
