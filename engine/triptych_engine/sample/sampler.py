"""One token for each row of logits: greedy by maximum, else one uniform number and the inverse CDF.

A row's kept tokens are those within its top_k, its top_p nucleus and its min_p share, all judged on the softmax
after temperature (for top_p: renormalised over the top_k). The draw walks the kept tokens in the order of their ids,
so that it depends on the row's own numbers only, never on the batch or on how ties are ordered.

Log-probabilities are the model's own: before temperature, bans and any of these cuts.
"""

from collections.abc import Sequence

import torch

from triptych_contract.sampling import uniform
from triptych_engine.executor.base import SampleSpec
from triptych_engine.messages import TokenLogprobs
from triptych_engine.ops.choice import Choice
from triptych_engine.sample.keep import kept_tokens

MIN_TEMPERATURE = 1e-5
"""Lower ones are lifted to this, which is greedy for any two distinct float32 logits worth the name."""


def sample(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[Choice]:
    """Choose a token for each row of [rows, vocabulary]; one spec a row."""
    masked = _ban(logits, specs)
    best = masked.max(-1).indices.tolist()
    drawn = [row for row, spec in enumerate(specs) if not spec.greedy]
    if drawn:
        probabilities = _probabilities(masked[drawn], [specs[row].temperature for row in drawn])
        for index, row in enumerate(drawn):
            best[row] = _draw(probabilities[index], specs[row])
    reports = _logprobs(logits, specs, best)
    return [Choice(token, reports.get(row)) for row, token in enumerate(best)]


def _ban(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> torch.Tensor:
    """Banned tokens at minus infinity, in a copy if there are any."""
    pairs = [(row, token) for row, spec in enumerate(specs) for token in spec.banned if token < logits.shape[1]]
    if not pairs:
        return logits
    rows, tokens = zip(*pairs, strict=True)
    masked = logits.clone()
    masked[list(rows), list(tokens)] = float("-inf")
    return masked


def _probabilities(logits: torch.Tensor, temperatures: list[float]) -> torch.Tensor:
    """Softmax after temperature, in float32 or float64; the maximum goes first, so that nothing overflows."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    heat = torch.tensor(temperatures, dtype=wide.dtype, device=wide.device).clamp_min(MIN_TEMPERATURE)
    return torch.softmax((wide - wide.max(-1, keepdim=True).values) / heat.unsqueeze(1), dim=-1)


def _draw(probabilities: torch.Tensor, spec: SampleSpec) -> int:
    """Inverse CDF over the kept tokens of one row [vocabulary]."""
    kept = kept_tokens(probabilities, top_k=spec.top_k, top_p=spec.top_p, min_p=spec.min_p)
    weights = probabilities if kept is None else probabilities[kept]
    cdf = weights.cumsum(0, dtype=torch.float64)
    u = uniform(seed=spec.seed, prompt_index=spec.prompt_index, choice=spec.choice, position=spec.position)
    # `right` skips tokens of weight zero in front; the clamp guards the last bit of the sum.
    index = int(torch.searchsorted(cdf, cdf[-1] * u, right=True).clamp_max(len(cdf) - 1))
    return index if kept is None else int(kept[index])


def _logprobs(logits: torch.Tensor, specs: Sequence[SampleSpec], chosen: list[int]) -> dict[int, TokenLogprobs]:
    """Reports of the rows that asked for one."""
    rows = [row for row, spec in enumerate(specs) if spec.logprobs is not None]
    if not rows:
        return {}
    wide = logits[rows] if logits.dtype == torch.float64 else logits[rows].float()
    logs = torch.log_softmax(wide, dim=-1)
    own = logs.gather(1, torch.tensor([chosen[row] for row in rows], device=logs.device).unsqueeze(1))
    ranks = ((logs > own).sum(-1) + 1).tolist()
    most = min(max(specs[row].logprobs or 0 for row in rows), logs.shape[1])
    values, ids = (part.tolist() for part in torch.topk(logs, most, dim=-1))
    reports = {}
    for index, row in enumerate(rows):
        count = specs[row].logprobs or 0
        top = tuple(zip(ids[index][:count], values[index][:count], strict=True))
        reports[row] = TokenLogprobs(float(own[index]), int(ranks[index]), top)
    return reports
