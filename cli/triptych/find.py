"""Which service a command means: by name, or the only one that runs."""

import os

from triptych.failure import NOT_RUNNING, Failure
from triptych_operator.state_dir import ServiceEntry, StateDirectory, default_root, services


def all_running() -> list[StateDirectory]:
    """Every service of this user whose operator lives."""
    return [state for state in services(default_root(os.environ)) if state.is_held()]


def named(name: str | None) -> StateDirectory:
    """The state directory of a service, running or not.

    Raises:
        Failure: Nothing of that name was ever started, or no name is given and not exactly one service runs.
    """
    if name:
        known = services(default_root(os.environ))
        state = next((state for state in known if state.path.name == name), None)
        if state is None:
            names = ", ".join(state.path.name for state in known) or "none"
            message = f"no service named {name} was ever started here (there are: {names}); see: triptych up --help"
            raise Failure(message, code=NOT_RUNNING)
        return state
    running = all_running()
    if not running:
        raise Failure("no service is running; start one with: triptych up -f FILE", code=NOT_RUNNING)
    if len(running) > 1:
        names = ", ".join(state.path.name for state in running)
        raise Failure(f"several services are running; name one of: {names}", code=2)
    return running[0]


def running(name: str | None) -> tuple[StateDirectory, ServiceEntry]:
    """A service that runs now, with what its operator last wrote.

    Raises:
        Failure: It does not run, or it does not listen yet.
    """
    state = named(name)
    entry = state.entry()
    if not state.is_held():
        message = f"{state.path.name} is not running; start it with: triptych up -f FILE"
        raise Failure(message, code=NOT_RUNNING)
    if entry is None or not entry.url:
        raise Failure(f"{state.path.name} is starting and does not listen yet; see: triptych status")
    return state, entry


def latest(name: str | None) -> StateDirectory:
    """As `named`, but where nothing runs the service that was started last: its logs say why it ended."""
    if name is None and not all_running():
        known = services(default_root(os.environ))
        if known:
            return max(known, key=StateDirectory.started_at_s)
    return named(name)
