"""Deadlines of requests: the next one in no time, expired ones without looking at the others."""

import heapq

from triptych_engine.core.request import Request


class Deadlines:
    """A heap of deadlines; those of requests that have ended are dropped when they come up or prevail."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._live = 0

    def add(self, request: Request) -> None:
        """Watch a request that has a deadline."""
        if request.submit.deadline_s is not None:
            heapq.heappush(self._heap, (request.submit.deadline_s, request.arrival, request))
            self._live += 1

    def drop(self, request: Request) -> None:
        """A request has ended; called once for each."""
        if request.submit.deadline_s is None:
            return
        self._live -= 1
        if len(self._heap) > 64 + 2 * self._live:
            self._heap = [item for item in self._heap if item[2].open_choices]
            heapq.heapify(self._heap)

    def next_s(self) -> float | None:
        """The earliest deadline of a live request."""
        while self._heap and not self._heap[0][2].open_choices:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, *, now_s: float) -> list[Request]:
        """Live requests whose time is over; they are not returned again."""
        found: list[Request] = []
        while (next_s := self.next_s()) is not None and next_s <= now_s:
            found.append(heapq.heappop(self._heap)[2])
        return found
