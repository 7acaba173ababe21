"""Linears on oneDNN's own weight layout, the cheapest large gain on a CPU: up to eight times in bfloat16.

The two operations are private to torch and may change with it, so they are wrapped here and tried on a small
product at start; where they do not answer as `linear` does, callers fall back to it.
"""

import torch
from torch.nn import functional

ROWS_HINT = 64
"""Rows that the packing is tuned for; one packing serves all numbers of rows well from 32 on."""
PROBE_TOLERANCE = 0.05
"""Relative to the largest output: above bfloat16's rounding, far below any wrong layout."""


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A weight [outputs, inputs] in oneDNN's layout."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)
    return packed


def packed_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[rows, inputs] → [rows, outputs] with a packed weight."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def packing_works(dtype: torch.dtype) -> bool:
    """Try the packed product on a small case; float64 has none."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    ramp = torch.arange(64 * 32, dtype=torch.float32)
    weight = torch.sin(ramp).view(64, 32).to(dtype)
    x = torch.cos(ramp[: 3 * 32]).view(3, 32).to(dtype)
    bias = torch.sin(ramp[:64] * 7).to(dtype)
    wanted = functional.linear(x, weight, bias)
    try:
        found = packed_linear(x, pack(weight), bias)
    except (RuntimeError, AttributeError, TypeError):
        return False
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return bool((found - wanted).abs().max() <= PROBE_TOLERANCE * wanted.abs().max())
