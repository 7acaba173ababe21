"""Lease ids that have had their end: none of them is granted any more.

The caller of a leg chooses the lease's id, and may give it back before this instance has granted it, or even
before it has read the leg. Such a release finds nothing to free; the id is remembered, so that the grant which
comes later frees at once what it would have kept.
"""

SPENT_S = 60.0
"""How long an id is remembered: far longer than a leg may be on its way behind its release."""
MAX_SPENT = 8192
"""Ids that are remembered; the oldest are forgotten first, and the lease's life does the rest."""


class SpentIds:
    """Ids with the time of their end, oldest first. Pure: the time is an argument.

    Args:
        life_s: How long an id is remembered.
        limit: How many are.
    """

    def __init__(self, *, life_s: float = SPENT_S, limit: int = MAX_SPENT) -> None:
        self._life_s = life_s
        self._limit = limit
        self._ended_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._ended_s)

    def add(self, lease_id: str, *, now_s: float) -> None:
        """An id has had its end now."""
        self._ended_s.pop(lease_id, None)
        self._ended_s[lease_id] = now_s
        while len(self._ended_s) > self._limit or now_s - self._oldest_s() >= self._life_s:
            del self._ended_s[next(iter(self._ended_s))]

    def holds(self, lease_id: str, *, now_s: float) -> bool:
        """True for an id that had its end not long ago."""
        ended_s = self._ended_s.get(lease_id)
        return ended_s is not None and now_s - ended_s < self._life_s

    def _oldest_s(self) -> float:
        return next(iter(self._ended_s.values()))
