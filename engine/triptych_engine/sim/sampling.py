"""Sampling over a few candidates, in plain Python: the same rules as for a real model's logits."""

import math
from bisect import bisect_right
from itertools import accumulate

from triptych_contract.sampling import uniform
from triptych_engine.executor.base import SampleSpec
from triptych_engine.messages import TokenLogprobs
from triptych_engine.sim.vocabulary import FLOOR_LOGPROB, Candidates, Vocabulary


def choose(spec: SampleSpec, state: int, vocabulary: Vocabulary) -> tuple[int, TokenLogprobs | None]:
    """The next token, and the raw model's log-probabilities if they are asked for."""
    raw = vocabulary.candidates(state)
    tokens, logprobs = _allowed(raw, spec, state, vocabulary)
    chosen = 0 if spec.greedy else _draw(_filtered(logprobs, spec), spec)
    return tokens[chosen], _report(tokens[chosen], raw, spec)


def _allowed(raw: Candidates, spec: SampleSpec, state: int, vocabulary: Vocabulary) -> tuple[list[int], list[float]]:
    """Candidates that are not banned; if all are, the next token of the vocabulary that is not."""
    kept = [pair for pair in zip(raw.token_ids, raw.logprobs, strict=True) if pair[0] not in spec.banned]
    if not kept:
        others = vocabulary.walk(state, len(raw.token_ids) + len(spec.banned) + 1)
        kept = [(token, 0.0) for token in others if token not in spec.banned][:1] or [(raw.token_ids[0], 0.0)]
    return [token for token, _ in kept], [logprob for _, logprob in kept]


def _filtered(logprobs: list[float], spec: SampleSpec) -> list[float]:
    """Weights after temperature, top_k, top_p and min_p; candidates stand in falling order."""
    best = logprobs[0]
    weights = [math.exp((logprob - best) / spec.temperature) for logprob in logprobs]
    if spec.top_k > 0:
        weights = weights[: spec.top_k]
    if spec.top_p < 1.0:
        # The smallest head that reaches top_p is kept; the first candidate always is.
        wanted = spec.top_p * math.fsum(weights)
        sums = list(accumulate(weights))
        weights = weights[: next((k + 1 for k, total in enumerate(sums) if total >= wanted), len(sums))]
    if spec.min_p > 0.0:
        weights = [weight for weight in weights if weight >= spec.min_p * weights[0]]
    return weights


def _draw(weights: list[float], spec: SampleSpec) -> int:
    """Inverse of the cumulative distribution at one uniform number."""
    number = uniform(seed=spec.seed, prompt_index=spec.prompt_index, choice=spec.choice, position=spec.position)
    sums = list(accumulate(weights))
    return min(bisect_right(sums, number * sums[-1]), len(sums) - 1)


def _report(token: int, raw: Candidates, spec: SampleSpec) -> TokenLogprobs | None:
    if spec.logprobs is None:
        return None
    pairs = list(zip(raw.token_ids, raw.logprobs, strict=True))
    rank = raw.token_ids.index(token) if token in raw.token_ids else len(pairs)
    chosen = pairs[rank][1] if rank < len(pairs) else FLOOR_LOGPROB
    return TokenLogprobs(chosen=chosen, rank=rank + 1, top=tuple(pairs[: spec.logprobs]))
