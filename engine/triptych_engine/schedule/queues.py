"""The scheduler's queues, both in arrival order, and the sequences that wait for blocks from elsewhere."""

from bisect import insort
from collections.abc import Iterator

from triptych_engine.core.request import Sequence, State


class Queues:
    """Waiting and running sequences in arrival order, and pulling ones.

    A preempted sequence goes back to its place in the order, which is in front of all that came later.
    """

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.pulling: list[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.waiting
        yield from self.running
        yield from self.pulling

    @property
    def num_active(self) -> int:
        """Sequences that hold blocks for computing."""
        return len(self.running) + len(self.pulling)

    def enqueue(self, sequence: Sequence) -> None:
        """A fresh sequence waits."""
        insort(self.waiting, sequence, key=_order)

    def move(self, sequence: Sequence, state: State) -> None:
        """Change a sequence's state and the queue that it stands in."""
        old = self._queue(sequence.state)
        sequence.move(state)
        if old is not None:
            old.remove(sequence)
        new = self._queue(state)
        if new is not None:
            insort(new, sequence, key=_order)

    def _queue(self, state: State) -> list[Sequence] | None:
        if state is State.WAITING:
            return self.waiting
        if state is State.RUNNING:
            return self.running
        return self.pulling if state is State.PULLING else None


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
