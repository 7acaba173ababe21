"""Loads the compiled attention, checks it against plain torch, and calls it.

It is loaded if it was built ahead (`triptych_engine.kernels`), never compiled here. Each row and KV head is computed
by itself, so a row's result does not depend on the rows beside it; plain torch cannot promise that.
"""

import logging
import os
from dataclasses import dataclass

import torch

from triptych_engine.kernels import HOW_TO_BUILD, find_built
from triptych_engine.ops.base import HeadShape
from triptych_engine.ops.batch import ForwardBatch, pad_tables

_LOG = logging.getLogger("triptych_engine.ops")

DTYPES = (torch.float32, torch.bfloat16)
DIM_STEP, MAX_HEAD_DIM = 16, 256
"""Head dimensions that the kernel takes: multiples of the first up to the second."""
CHECK_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference that the self-check lets pass; its values are of the order of one."""


@dataclass(frozen=True, slots=True)
class NativePlan:
    """Rows with one query: their tokens [rows], blocks [rows, longest] and context lengths [rows]."""

    tokens: torch.Tensor
    table: torch.Tensor
    contexts: torch.Tensor


def plan_native(batch: ForwardBatch, rows: list[int]) -> NativePlan:
    """The plan of some rows of a batch, each with one query; at least one."""
    return NativePlan(
        tokens=torch.tensor([batch.query_starts[row] for row in rows]),
        table=pad_tables([batch.block_tables[row] for row in rows], torch.device("cpu")),
        contexts=torch.tensor([batch.context_lengths[row] for row in rows]),
    )


class NativeAttention:
    """The loaded operation; made by `load_attention`.

    Args:
        isa: Highest instruction set to use: 0 any processor, 1 AVX2, 2 AVX-512; None takes the best of this one.
    """

    def __init__(self, isa: int | None = None) -> None:
        self._isa: int = torch.ops.triptych.best_isa() if isa is None else isa

    def __call__(
        self, q: torch.Tensor, kv: torch.Tensor, plan: NativePlan, shape: HeadShape, out: torch.Tensor
    ) -> None:
        """Attention of the plan's tokens of q [tokens, heads, head dim] into the same tokens of `out`."""
        torch.ops.triptych.paged_attention(q, kv, plan.tokens, plan.table, plan.contexts, shape.scale, self._isa, out)


def load_attention(mode: str, *, dtype: torch.dtype, head_dim: int) -> NativeAttention | None:
    """The kernel for a model on the CPU, or None if it is off, not made for it, not built, or wrong.

    One log line says which, but for `off`.

    Args:
        mode: `auto` or `off`.
        dtype: Element type of the model.
        head_dim: Head dimension of the model.
    """
    if mode == "off":
        return None
    if dtype not in DTYPES or head_dim % DIM_STEP or head_dim > MAX_HEAD_DIM:
        _LOG.info("no CPU kernels for %s with heads of %d, attention runs in plain torch", dtype, head_dim)
        return None
    path = find_built(os.environ)
    if path is None:
        _LOG.info("CPU kernels are not built, attention runs in plain torch; build them once with: %s", HOW_TO_BUILD)
        return None
    try:
        if not hasattr(torch.ops.triptych, "paged_attention"):  # a process takes each operation once
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        attention = NativeAttention()
        sound = answers_as_torch(attention, dtype)
    except (OSError, RuntimeError, AttributeError) as error:
        _LOG.warning("CPU kernels could not be loaded, attention runs in plain torch: %s", error)
        return None
    if not sound:
        _LOG.error("CPU kernels fail their self-check, attention runs in plain torch; build them anew")
        return None
    _LOG.info("CPU kernels are loaded")
    return attention


def answers_as_torch(attention: NativeAttention, dtype: torch.dtype) -> bool:
    """Compare a small case, rows of unequal lengths over shuffled blocks, with the same in float64."""
    shape = HeadShape(heads=6, kv_heads=2, head_dim=32)
    contexts = torch.tensor([1, 17, 40])
    table = torch.tensor([[5, 0, 0], [3, 1, 0], [2, 6, 4]])
    kv = torch.sin(torch.arange(7 * 2 * 2 * 16 * 32, dtype=torch.float32)).view(7, 2, 2, 16, 32).to(dtype)
    q = torch.cos(torch.arange(3 * 6 * 32, dtype=torch.float32)).view(3, 6, 32).to(dtype)
    out = torch.empty_like(q)
    attention(q, kv, NativePlan(torch.arange(3), table, contexts), shape, out)
    dense = kv.double()[table].permute(2, 0, 3, 1, 4, 5).reshape(2, 3, 2, 48, 32)
    scores = (q.double().view(3, 2, 3, 32) @ dense[0].transpose(2, 3)) * shape.scale
    beyond = torch.arange(48) >= contexts.view(3, 1, 1, 1)
    wanted = torch.softmax(scores.masked_fill(beyond, float("-inf")), -1) @ dense[1]
    return bool((out.double() - wanted.view(3, 6, 32)).abs().max() <= CHECK_TOLERANCE[dtype])
