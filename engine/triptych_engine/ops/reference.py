"""The operations in plain torch, written to be read: fallback and oracle of every backend.

Norms and the softmax of attention compute in float32, or in float64 where that is the element type.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from triptych_engine.executor.base import SampleSpec
from triptych_engine.ops.base import HeadShape, LinearWeight, RopeTable
from triptych_engine.ops.batch import ForwardBatch
from triptych_engine.ops.choice import Choice
from triptych_engine.sample.sampler import sample


class ReferenceOps:
    """Plain torch on any device."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype, block_tokens: int = 32) -> None:
        self.device = device
        self.dtype = dtype
        self.block_tokens = block_tokens

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
        """Keep the weight as it is."""
        outputs, inputs = weight.shape
        return LinearWeight(weight.contiguous(), bias, inputs, outputs)

    def linear(self, x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        """x · weightᵀ + bias."""
        return functional.linear(x, weight.data, weight.bias)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x / sqrt(mean(x²) + eps) · weight, over the sum with the residual."""
        total = x if residual is None else x + residual
        return norm_rows(total, weight, eps), total

    def qk_norm_rope_store(
        self,
        qkv: torch.Tensor,
        *,
        norm: torch.Tensor | None,
        eps: float,
        rope: RopeTable,
        kv: torch.Tensor,
        batch: ForwardBatch,
        shape: HeadShape,
    ) -> torch.Tensor:
        """One norm and one turn for queries and keys together, one write for keys and values together."""
        heads = qkv.view(len(qkv), shape.heads + 2 * shape.kv_heads, shape.head_dim)
        queries_keys = heads[:, : shape.heads + shape.kv_heads]
        if norm is not None:
            queries_keys = norm_rows(queries_keys, norm, eps)
        turned = queries_keys * rope.cos + turn_half(queries_keys) * rope.sin
        keys, values = turned[:, shape.heads :], heads[:, shape.heads + shape.kv_heads :]
        fresh = torch.stack((keys, values), dim=1)  # [tokens, 2, kv heads, head dim]
        slots = batch.slots
        if batch.stored is not None:
            fresh, slots = fresh[batch.stored], slots[batch.stored]
        kv[slots // self.block_tokens, :, :, slots % self.block_tokens] = fresh
        return turned[:, : shape.heads]

    def plan_attention(self, batch: ForwardBatch) -> Any:
        """The batch itself."""
        return batch

    def attention(self, q: torch.Tensor, kv: torch.Tensor, plan: Any, shape: HeadShape) -> torch.Tensor:
        """Row by row: gather the context, score it whole, mask what comes later."""
        batch: ForwardBatch = plan
        out = torch.empty_like(q)
        group = shape.heads // shape.kv_heads
        for row, context in enumerate(batch.context_lengths):
            first, end = batch.query_starts[row], batch.query_starts[row + 1]
            table = torch.from_numpy(batch.block_tables[row]).to(q.device)
            dense = kv[table].permute(1, 2, 0, 3, 4).reshape(2, shape.kv_heads, -1, shape.head_dim)[:, :, :context]
            keys, values = dense.repeat_interleave(group, dim=1)  # [heads, context, head dim] each
            scores = (q[first:end].transpose(0, 1) @ keys.transpose(1, 2)) * shape.scale
            later = torch.ones(end - first, context, dtype=torch.bool, device=q.device).triu(
                context - (end - first) + 1
            )
            weights = softmax(scores.masked_fill(later, float("-inf")))
            out[first:end] = (weights @ values).transpose(0, 1)
        return out.view(len(q), -1)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def sample(self, logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[Choice]:
        """As `sample.sampler` says."""
        return sample(logits, specs)

    def kv_copy(self, pool: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> None:
        """One indexed copy."""
        if pairs:
            sources, targets = (torch.tensor(ids, device=pool.device) for ids in zip(*pairs, strict=True))
            pool[targets] = pool[sources]


def norm_rows(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension; the weight is applied in the element type, as the models were trained."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def turn_half(x: torch.Tensor) -> torch.Tensor:
    """(a, b) → (−b, a), with a and b the halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension in at least float32, returned in the element type of the scores."""
    if scores.dtype == torch.float64:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
