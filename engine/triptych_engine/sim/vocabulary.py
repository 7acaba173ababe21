"""What the simulated model may say after a given state of mind: a few candidates with fixed weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

NUM_CANDIDATES = 16
EOS_ODDS = 96
"""One state of mind in so many proposes to end, so that outputs have different natural lengths."""

FLOOR_LOGPROB = -32.0
"""Of tokens that are no candidates; finite, because JSON has no infinity."""

_DECAY = 0.35  # candidate k weighs exp(-0.35 k): the best one has about 0.3, the last about 0.0015
_EOS_SHARE = 0.5
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """The raw model's distribution, most likely first; probabilities sum to 1.

    Attributes:
        token_ids: Distinct tokens.
        logprobs: Natural logarithms of their probabilities.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Vocabulary:
    """Maps a state of mind to candidates.

    Args:
        allowed: Tokens that the model says, at least `NUM_CANDIDATES` distinct ones.
        eos: Tokens by which it ends; may be empty.
    """

    def __init__(self, allowed: Sequence[int], eos: Sequence[int]) -> None:
        self._allowed = [token for token in dict.fromkeys(allowed) if token not in set(eos)]
        self._eos = list(eos)
        if len(self._allowed) < NUM_CANDIDATES:
            raise ValueError(f"the simulated model needs {NUM_CANDIDATES} tokens that it may say")
        size = len(self._allowed)
        self._strides = [stride for stride in range(1, size) if math.gcd(stride, size) == 1]
        weights = [math.exp(-_DECAY * rank) for rank in range(NUM_CANDIDATES)]
        total = math.fsum(weights)
        self._logprobs = tuple(math.log(weight / total) for weight in weights)
        rest = tuple(math.log((1 - _EOS_SHARE) * weight / total) for weight in weights)
        self._logprobs_with_eos = (math.log(_EOS_SHARE), *rest)

    def candidates(self, state: int) -> Candidates:
        """What may come next."""
        tokens = tuple(self.walk(state, NUM_CANDIDATES))
        ends = (state * 0x9E3779B97F4A7C15 & _MASK) >> 40
        if self._eos and ends % EOS_ODDS == 0:
            return Candidates((self._eos[ends // EOS_ODDS % len(self._eos)], *tokens), self._logprobs_with_eos)
        return Candidates(tokens, self._logprobs)

    def walk(self, state: int, count: int) -> list[int]:
        """The first `count` (at most all) allowed tokens in the order of this state, each once."""
        size = len(self._allowed)
        start = state % size
        stride = self._strides[state // size % len(self._strides)]
        return [self._allowed[(start + step * stride) % size] for step in range(min(count, size))]
