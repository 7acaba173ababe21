"""How long a simulated step lasts: the profile with seeded jitter, waited for until an absolute time."""

from collections.abc import Callable
from random import Random


class Pace:
    """Waits so that steps end when they should.

    While steps follow each other closely each one is timed from the *planned* end of the one before, so that the
    lateness of a sleep does not add to the next step.

    Args:
        now_s: The monotonic time.
        sleep: Waits for seconds.
        seed: Of the jitter.
        jitter_percent: Largest deviation, either way.
        time_scale: Multiplies durations; 0 never waits.
    """

    def __init__(
        self,
        *,
        now_s: Callable[[], float],
        sleep: Callable[[float], None],
        seed: int = 0,
        jitter_percent: float = 0.0,
        time_scale: float = 1.0,
    ) -> None:
        self._now_s = now_s
        self._sleep = sleep
        self._random = Random(seed)  # noqa: S311 - jitter is no secret
        self._jitter = jitter_percent / 100
        self._time_scale = time_scale
        self._planned_end_s = float("-inf")

    def begin(self) -> float:
        """The time at which the work of a step began."""
        return self._now_s()

    def finish(self, *, began_s: float, seconds: float) -> None:
        """Wait until a step that takes `seconds` and began then is over."""
        if self._time_scale == 0:
            return
        lasts_s = seconds * self._time_scale * (1 + self._random.uniform(-self._jitter, self._jitter))
        late_s = began_s - self._planned_end_s
        start_s = self._planned_end_s if 0 <= late_s <= lasts_s else began_s
        self._planned_end_s = start_s + lasts_s
        left_s = self._planned_end_s - self._now_s()
        if left_s > 0:
            self._sleep(left_s)
