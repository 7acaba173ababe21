"""`triptych up --detach`: the same command in a session of its own, and a wait until it is ready."""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from triptych.banner import announce
from triptych.failure import Failure
from triptych.up import GIVE_UP_CRASHES, READY_S, Options, check_port, read
from triptych_operator.state_dir import AlreadyRunning, StateDirectory

PROGRAM = (sys.executable, "-m", "triptych")
POLL_S = 0.1
TAIL_LINES = 5


def detach(options: Options, state: StateDirectory, *, console: Console) -> None:
    """Start the service in the background; returns when it is ready, raises `Failure` when it is not to be."""
    service = read(options.file)
    try:
        with state.held():
            check_port(options.port)
    except AlreadyRunning as held:
        raise Failure(str(held)) from None
    log = state.logs / "up.log"
    argv = [
        *PROGRAM,
        *("up", "-f", str(options.file.resolve())),
        *("--port", str(options.port), "--engine", options.engine),
    ]
    with log.open("wb") as sink:
        child = subprocess.Popen(  # noqa: S603 - our own program, as a list
            argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    with console.status(f"{service.name}: starting"):
        _wait(child, state, log)
    entry = state.entry()
    if entry is not None:
        announce(console, entry.status, model=entry.model, name=entry.name)
        console.print(f"stop it with: triptych down {entry.name}", markup=False, highlight=False)


def _wait(child: "subprocess.Popen[bytes]", state: StateDirectory, log: Path) -> None:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s:
        if child.poll() is not None:
            raise Failure(f"it ended with exit code {child.returncode}: {_tail(log)}")
        entry = state.entry()
        if entry is not None and entry.pid == child.pid:
            if entry.status.ready:
                return
            if entry.status.most_crashes >= GIVE_UP_CRASHES:
                child.terminate()
                raise Failure(f"{entry.status.waiting_for}; see: triptych logs --service {entry.name}")
        time.sleep(POLL_S)
    name = state.path.name
    raise Failure(
        f"{name} is not ready after {READY_S:.0f} s; see: triptych status {name}; end it: triptych down {name}"
    )


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return " ".join(lines[-TAIL_LINES:]) or "it said nothing"
