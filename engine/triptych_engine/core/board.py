"""The board: a small shared page on which the core shows how its step is going.

The server reads it for every heartbeat without asking the core, so that the age of a step is told even if the
core hangs in it. Each number is one aligned 8-byte word with one writer; the words are written in an order in
which a reader between two of them sees at worst a step that has just begun or just ended.
"""

import mmap
from dataclasses import dataclass

from triptych_engine.kv.memory import create_shared

BOARD_BYTES = mmap.PAGESIZE

_STEP, _STARTED_NS, _PREDICTED_NS, _TAKEN = range(4)


@dataclass(frozen=True, slots=True)
class BoardSample:
    """What the board says.

    Attributes:
        step: Number of steps finished.
        started_ns: Monotonic time at which the running step began; 0 while idle.
        predicted_ns: What the running step should take.
        taken: Number of messages that the core has taken from its channel.
    """

    step: int
    started_ns: int
    predicted_ns: int
    taken: int = 0

    def age_ms(self, *, now_ns: int) -> float:
        """Age of the running step, 0 while idle."""
        return max(0, now_ns - self.started_ns) / 1e6 if self.started_ns else 0.0

    @property
    def predicted_ms(self) -> float:
        """What the running step should take, 0 while idle."""
        return self.predicted_ns / 1e6 if self.started_ns else 0.0


def create_board() -> int:
    """A descriptor of a fresh board, owned by the caller."""
    return create_shared("triptych-board", BOARD_BYTES)


class _Board:
    """A mapping of the page; the descriptor may be closed once it is made."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, BOARD_BYTES)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")

    def close(self) -> None:
        """Drop the mapping."""
        self._words.release()
        self._bytes.release()
        self._map.close()


class BoardWriter(_Board):
    """The core's side."""

    def begin(self, *, now_ns: int, predicted_ns: int) -> None:
        """A step begins."""
        self._words[_PREDICTED_NS] = predicted_ns
        self._words[_STARTED_NS] = now_ns

    def end(self, *, step: int) -> None:
        """The step has ended; `step` steps are finished."""
        self._words[_STARTED_NS] = 0
        self._words[_STEP] = step

    def take(self, count: int) -> None:
        """So many messages more have been taken from the channel."""
        self._words[_TAKEN] += count


class BoardReader(_Board):
    """The server's side."""

    def sample(self) -> BoardSample:
        """What the board says at this moment."""
        return BoardSample(
            step=self._words[_STEP],
            started_ns=self._words[_STARTED_NS],
            predicted_ns=self._words[_PREDICTED_NS],
            taken=self._words[_TAKEN],
        )
