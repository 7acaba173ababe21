"""The operations on a CPU: packed linears, and attention in batched matrix products."""

from typing import Any

import torch
from torch.nn import functional

from triptych_engine.ops.base import HeadShape, LinearWeight
from triptych_engine.ops.batch import ForwardBatch
from triptych_engine.ops.packed import pack, packed_linear, packing_works
from triptych_engine.ops.paged import PagedPlan, paged_attention, plan_paged
from triptych_engine.ops.reference import ReferenceOps

BLOCK_TOKENS = 32
"""Tokens a block on a CPU: the service-wide hash granularity, so that short shared prefixes are found."""
WIDE_INPUTS = 1536
"""From here on a float32 product of one row differs in its last bits from that of several; padding to two mends it."""


class CpuOps(ReferenceOps):
    """The reference, with its two costly operations replaced."""

    def __init__(self, *, dtype: torch.dtype, block_tokens: int = BLOCK_TOKENS) -> None:
        super().__init__(device=torch.device("cpu"), dtype=dtype, block_tokens=block_tokens)
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
        """Groups of rows with their index tensors."""
        return plan_paged(batch, block_tokens=self.block_tokens, device=self.device)

    def attention(self, q: torch.Tensor, kv: torch.Tensor, plan: Any, shape: HeadShape) -> torch.Tensor:
        """As `ops.paged` says."""
        grouped: PagedPlan = plan
        return paged_attention(q, kv, grouped, shape)
