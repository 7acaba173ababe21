"""Notice the end of stdin: a parent that dies, even by SIGKILL, closes the pipe it holds."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable

_READ_BYTES = 4096


def when_stdin_ends(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call back in the loop once stdin is at its end.

    A thread reads, since a loop cannot watch files and terminals alike; it ends with the process.
    """

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, _READ_BYTES):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program is leaving anyway
            loop.call_soon_threadsafe(callback)

    threading.Thread(target=read, name="stdin", daemon=True).start()
