"""Sampling parameters, their limits, and the function that replaces a random generator.

A draw is a function of (seed, prompt index, choice, output position, draw): the same on any instance, in
any batch and after any recovery. The request's id takes no part, so a user's seed gives the same text twice.
"""

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import xxhash

from triptych_contract.errors import BadRequest

_DRAW = struct.Struct("<qIIqI")


def uniform(*, seed: int, prompt_index: int, choice: int, position: int, draw: int = 0) -> float:
    """A number in [0, 1), uniform in each argument: the top 53 bits of xxh3-64 over all of them.

    Args:
        seed: Signed 64-bit seed.
        prompt_index: Which prompt of a list of prompts.
        choice: Which of `n` choices.
        position: Output position, 0 for the first sampled token.
        draw: Number of the draw at this position, for algorithms that need several.
    """
    packed = _DRAW.pack(seed, prompt_index, choice, position, draw)
    return float(xxhash.xxh3_64_intdigest(packed) >> 11) * 2.0**-53


class Range(NamedTuple):
    """Closed bounds of a numeric parameter."""

    low: float
    high: float


LIMITS: Mapping[str, Range] = MappingProxyType(
    {
        "n": Range(1, 16),
        "max_tokens": Range(0, 2**31 - 1),
        "max_completion_tokens": Range(0, 2**31 - 1),
        "min_tokens": Range(0, 2**31 - 1),
        "temperature": Range(0.0, 2.0),
        "top_p": Range(0.0, 1.0),
        "top_k": Range(-1, 2**31 - 1),
        "min_p": Range(0.0, 1.0),
        "seed": Range(-(2**63), 2**63 - 1),
        "logprobs": Range(0, 20),
        "top_logprobs": Range(0, 20),
    }
)
"""Bounds that are checked before anything is allocated by a value."""

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_PROMPTS = 64


def check_range(name: str, value: float) -> None:
    """Raise `BadRequest` naming the parameter if the value is outside its range, or no number."""
    low, high = LIMITS[name]
    if not low <= value <= high:
        raise BadRequest(f"{name} must be between {_plain(low)} and {_plain(high)}.", param=name)


def _plain(bound: float) -> str:
    """A bound as a person would write it: whole numbers in full."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


class SamplingParams(msgspec.Struct, frozen=True):
    """How the tokens of one request are chosen and when it ends; every field is validated.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus; 1 keeps all.
        top_k: Most likely tokens kept; 0 keeps all.
        min_p: Tokens below this share of the best one are dropped; 0 keeps all.
        seed: Of the counter-based draws.
        n: Number of choices.
        max_tokens: Bound of the output of each choice, in tokens.
        min_tokens: No end-of-sequence or stop token before so many tokens.
        stop: Strings that end the output and are not part of it.
        stop_token_ids: Tokens that end the output, beside the model's own.
        ignore_eos: Go on past the model's end-of-sequence tokens.
        logprobs: Number of alternatives reported beside each chosen token; None reports nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """True if every token is the most likely one."""
        return self.temperature == 0.0 or self.top_k == 1
