"""`triptych down`: drain and end a service."""

import contextlib
import os
import signal
import time

from rich.console import Console

from triptych.failure import Failure
from triptych.find import named
from triptych_operator.state_dir import StateDirectory

MARGIN_S = 30.0
"""Routers and instances drain one after the other; this much more is for the ends of processes."""
POLL_S = 0.05


def down(name: str | None, *, drain_s: float, console: Console) -> None:
    """End a service and wait for it; one that does not run is fine."""
    state = named(name)
    name, pid = state.path.name, state.holder()
    if pid is None:
        console.print(f"{name} is not running")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    with console.status(f"{name}: draining"):
        ended = wait_until_free(state, 2 * drain_s + MARGIN_S)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not wait_until_free(state, MARGIN_S):
            raise Failure(f"{name} (process {pid}) does not end; look at it with: ps {pid}")
    console.print(f"{name} has ended")


def wait_until_free(state: StateDirectory, timeout_s: float) -> bool:
    """Wait until nobody holds the name; False at the deadline."""
    end_s = time.monotonic() + timeout_s
    while state.is_held():
        if time.monotonic() > end_s:
            return False
        time.sleep(POLL_S)
    return True
