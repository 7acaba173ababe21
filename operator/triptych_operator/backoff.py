"""When a child that ended may be started again: 0.5 s after the first crash, doubling to 30 s.

Half a second does not slow down the repair of a single crash; thirty seconds keep a model that cannot load from
using a laptop up, while a mended cause is still seen soon. A healthy minute forgets the past.
"""

FIRST_S = 0.5
LONGEST_S = 30.0
HEALTHY_S = 60.0


def crashes_after(crashes: int, *, ran_s: float) -> int:
    """Crashes in a row after one more end of a process that ran for `ran_s` seconds."""
    return 1 if ran_s >= HEALTHY_S else crashes + 1


def delay_s(crashes: int) -> float:
    """Seconds between an end and the next start."""
    if crashes <= 0:
        return 0.0
    return min(LONGEST_S, FIRST_S * 2.0 ** min(crashes - 1, 16))
