"""`triptych logs`: what the children of a service say."""

import time
from collections import deque
from pathlib import Path

from triptych.failure import NOT_RUNNING, Failure
from triptych.find import latest
from triptych_operator.state_dir import StateDirectory

TAIL_LINES = 200
POLL_S = 0.2


def logs(instance: str | None, *, service: str | None, follow: bool, lines: int = TAIL_LINES) -> None:
    """Print the last lines of one child's log, or of all, and go on with new ones if asked."""
    state = latest(service)
    files = _files(state, instance)
    width = max(len(path.stem) for path in files)
    places: dict[Path, int] = {}
    for path in files:
        prefix = f"{path.stem:<{width}}  " if len(files) > 1 else ""
        places[path] = _print_tail(path, prefix, lines)
    while follow:
        time.sleep(POLL_S)
        for path in files:
            prefix = f"{path.stem:<{width}}  " if len(files) > 1 else ""
            places[path] = _print_from(path, prefix, places[path])


def _files(state: StateDirectory, instance: str | None) -> list[Path]:
    found = sorted(state.logs.glob("*.log"))
    if instance is not None:
        chosen = [path for path in found if path.stem == instance]
        if not chosen:
            known = ", ".join(path.stem for path in found) or "none yet"
            raise Failure(f"there is no log of {instance}; there are: {known}", code=2)
        return chosen
    if not found:
        raise Failure(f"{state.path.name} has no logs yet; start it with: triptych up", code=NOT_RUNNING)
    return found


def _print_tail(path: Path, prefix: str, lines: int) -> int:
    with path.open("rb") as file:
        for line in deque(file, maxlen=lines):
            _print(prefix, line)
        return file.tell()


def _print_from(path: Path, prefix: str, place: int) -> int:
    """Print what came after a place; a file that is shorter than that was begun anew."""
    with path.open("rb") as file:
        if path.stat().st_size < place:
            place = 0
        file.seek(place)
        for line in file:
            _print(prefix, line)
        return file.tell()


def _print(prefix: str, line: bytes) -> None:
    text = line.decode("utf-8", "replace").rstrip("\n")
    print(prefix + "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in text), flush=True)
