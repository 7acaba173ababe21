"""The operations on a CUDA device: plain torch with attention in batched matrix products, no kernels of its own.

The code is that of every device and its tests run on a CPU; it has not been measured or tested on CUDA hardware.
"""

from typing import Any

import torch

from triptych_engine.ops.base import HeadShape
from triptych_engine.ops.batch import ForwardBatch
from triptych_engine.ops.paged import PagedPlan, paged_attention, plan_paged
from triptych_engine.ops.reference import ReferenceOps

BLOCK_TOKENS = 32
"""Tokens a block: equal to that of the CPU, so that the two can hand over to each other."""


class CudaOps(ReferenceOps):
    """Linears by cuBLAS, which wants no packing; attention as on the CPU."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype, block_tokens: int = BLOCK_TOKENS) -> None:
        super().__init__(device=device, dtype=dtype, block_tokens=block_tokens)

    def plan_attention(self, batch: ForwardBatch) -> Any:
        """Groups of rows with their index tensors, on the device."""
        return plan_paged(batch, range(batch.num_rows), block_tokens=self.block_tokens, device=self.device)

    def attention(self, q: torch.Tensor, kv: torch.Tensor, plan: Any, shape: HeadShape) -> torch.Tensor:
        """As `ops.paged` says."""
        grouped: PagedPlan = plan
        return paged_attention(q, kv, grouped, shape, q.new_empty(q.shape))
