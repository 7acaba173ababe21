"""The operations on a CPU: packed linears, and attention by the compiled kernel or in batched matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from triptych_engine.ops.base import HeadShape, LinearWeight
from triptych_engine.ops.batch import ForwardBatch
from triptych_engine.ops.native.attention import NativeAttention, NativePlan, plan_native
from triptych_engine.ops.packed import pack, packed_linear, packing_works
from triptych_engine.ops.paged import PagedPlan, paged_attention, plan_paged
from triptych_engine.ops.reference import ReferenceOps

BLOCK_TOKENS = 32
"""Tokens a block on a CPU: the service-wide hash granularity, so that short shared prefixes are found."""
WIDE_INPUTS = 1536
"""From here on a float32 product of one row differs in its last bits from that of several; padding to two mends it."""


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """What all layers of one step share: rows for the kernel, if there are any, and the rest."""

    native: NativePlan | None
    paged: PagedPlan


class CpuOps(ReferenceOps):
    """The reference, with its two costly operations replaced.

    Args:
        dtype: Element type of weights and KV.
        block_tokens: Tokens a block.
        native: The compiled attention for rows with one query, if it takes the model's heads; None computes them in
            plain torch.
    """

    def __init__(
        self, *, dtype: torch.dtype, block_tokens: int = BLOCK_TOKENS, native: NativeAttention | None = None
    ) -> None:
        super().__init__(device=torch.device("cpu"), dtype=dtype, block_tokens=block_tokens)
        self._native = native
        self._packing = packing_works(dtype)

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
        """Reorder the weight for oneDNN where that works for the element type."""
        if not self._packing:
            return super().pack_linear(weight, bias)
        outputs, inputs = weight.shape
        return LinearWeight(pack(weight), bias, inputs, outputs, packed=True)

    def linear(self, x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        """x · weightᵀ + bias; in float32 a row's result does not depend on the rows beside it."""
        if not weight.packed:
            return functional.linear(x, weight.data, weight.bias)
        if len(x) == 1 and weight.inputs >= WIDE_INPUTS and x.dtype == torch.float32:
            return packed_linear(x.expand(2, -1).contiguous(), weight.data, weight.bias)[:1]
        return packed_linear(x.contiguous(), weight.data, weight.bias)

    def plan_attention(self, batch: ForwardBatch) -> Any:
        """Rows for the kernel, and groups of the others with their index tensors."""
        rows: Sequence[int] = range(batch.num_rows)
        native: NativePlan | None = None
        if self._native is not None:
            singles = [row for row in rows if batch.query_length(row) == 1]
            native = plan_native(batch, singles) if singles else None
            rows = [row for row in rows if batch.query_length(row) > 1]
        return CpuPlan(native, plan_paged(batch, rows, block_tokens=self.block_tokens, device=self.device))

    def attention(self, q: torch.Tensor, kv: torch.Tensor, plan: Any, shape: HeadShape) -> torch.Tensor:
        """By the kernel and as `ops.paged` says."""
        split: CpuPlan = plan
        out = q.new_empty(q.shape)
        if self._native is not None and split.native is not None:
            self._native(q, kv, split.native, shape, out)
        return paged_attention(q, kv, split.paged, shape, out)
