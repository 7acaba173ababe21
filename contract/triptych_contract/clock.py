"""Time is passed in: production hands over `SystemClock`, tests and the simulator a `ManualClock`."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed point, never going back."""

    def now_s(self) -> float:
        """The monotonic time in seconds."""
        ...


class SystemClock:
    """The machine's monotonic clock; on Linux it is the same in all processes of the machine."""

    def now_s(self) -> float:
        """The monotonic time in seconds."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """The time last set, in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward; a negative step is a programming error."""
        if seconds < 0:
            raise ValueError("a monotonic clock cannot go back")
        self._now_s += seconds
