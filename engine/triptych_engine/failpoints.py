"""Named places where a test makes the program fail. Outside of such tests a failpoint does nothing.

They are armed once, at start, from `TRIPTYCH_FAILPOINTS="name=action,name=action"`, and only if the program was
started with `--enable-failpoints`; otherwise the server drops the variable, so that no core inherits it.
Actions: `kill` (this process, as by SIGKILL), `delay:MS`, `error`, `corrupt` (the place decides what that means).
An action may end in `*N`: it then acts on the first N passes only.
"""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "TRIPTYCH_FAILPOINTS"
_KINDS = ("kill", "delay", "error", "corrupt")


class FailpointError(RuntimeError):
    """The failure that a failpoint with the action `error` stands for."""


@dataclass(slots=True)
class _Action:
    kind: str
    delay_s: float = 0.0
    passes_left: int | None = None

    def take(self) -> bool:
        """True if the action acts on this pass."""
        if self.passes_left is None:
            return True
        self.passes_left -= 1
        return self.passes_left >= 0


_armed: dict[str, _Action] = {}


def arm(environment: Mapping[str, str]) -> None:
    """Take the failpoints of an environment, in place of all earlier ones; without the variable there are none.

    Raises:
        ValueError: The variable names no known action.
    """
    _armed.clear()
    for item in filter(None, environment.get(VARIABLE, "").split(",")):
        name, equals, action = item.partition("=")
        if not equals:
            raise ValueError(f"{VARIABLE}: {item!r} is not name=action")
        _armed[name.strip()] = _parse(action.strip())


def is_armed(name: str) -> bool:
    """True if a test has armed this failpoint; for places that must work in smaller portions to be hit exactly."""
    return name in _armed


def failpoint(name: str) -> bool:
    """Pass a failpoint; blocks the thread for `delay`. True if the caller shall corrupt what it holds.

    Raises:
        FailpointError: The action is `error`.
    """
    if not _armed:
        return False
    delay_s, corrupt = _act(name)
    if delay_s:
        time.sleep(delay_s)
    return corrupt


async def failpoint_async(name: str) -> bool:
    """As `failpoint`, for the event loop, which goes on during a `delay`."""
    if not _armed:
        return False
    delay_s, corrupt = _act(name)
    if delay_s:
        await asyncio.sleep(delay_s)
    return corrupt


def _act(name: str) -> tuple[float, bool]:
    action = _armed.get(name)
    if action is None or not action.take():
        return 0.0, False
    if action.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action.kind == "error":
        raise FailpointError(f"failpoint {name}")
    return action.delay_s, action.kind == "corrupt"


def _parse(text: str) -> _Action:
    action, _, passes = text.partition("*")
    kind, _, amount = action.partition(":")
    if kind not in _KINDS or (kind == "delay") != bool(amount):
        raise ValueError(f"{VARIABLE}: {text!r} is no action")
    return _Action(kind, delay_s=int(amount or 0) / 1000, passes_left=int(passes) if passes else None)
