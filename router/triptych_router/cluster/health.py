"""Pure: alive, suspect or dead, by beats and by progress.

An open port proves nothing: a stopped process keeps its connections, a stuck core keeps its server. So every
beat carries the age of the running step.
"""

from triptych_contract.instance import (
    BEAT_MS,
    DEAD_BEATS,
    MIN_STEP_AGE_MS,
    STEP_AGE_FACTOR,
    SUSPECT_BEATS,
    LoadSample,
)
from triptych_router.cluster.view import Health


def judge(*, beat_age_s: float, load: LoadSample, reachable: bool = True) -> Health:
    """The health of an instance.

    Args:
        beat_age_s: Since its last event.
        load: Its last sample.
        reachable: False once its stream broke and a new one was refused.
    """
    if not reachable:
        return Health.DEAD
    missed_beats = beat_age_s * 1000 / BEAT_MS
    if missed_beats >= DEAD_BEATS:
        return Health.DEAD
    if missed_beats >= SUSPECT_BEATS or _stuck(load):
        return Health.SUSPECT
    return Health.ALIVE


def _stuck(load: LoadSample) -> bool:
    """The running step takes far longer than it should; judged at the sample, since it may have ended after it."""
    return load.step_age_ms > max(MIN_STEP_AGE_MS, STEP_AGE_FACTOR * load.step_predicted_ms)
