"""The decoder of Qwen3, Qwen2 and Llama, written once over the backend operations.

    ids → embedding → layers × (norm → qkv → rope, KV store → paged attention → out; norm → gated MLP) → norm → logits

All rows of a step run end to end as one [tokens, hidden] matrix; only attention knows where a row ends. The three
families differ in biases, in the norms of queries and keys, and in how rope is scaled: all of it is in the
weights and tables, none in the control flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triptych_engine.model.config import ModelConfig
from triptych_engine.ops.base import HeadShape, LinearWeight, Ops, RopeTable
from triptych_engine.ops.batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: queries, keys and values fused into one linear, gate and up into another.

    `qk_norm` is [heads + kv heads, head dim], the query norm repeated and then the key norm; None without them.
    """

    input_norm: torch.Tensor
    qkv: LinearWeight
    qk_norm: torch.Tensor | None
    out: LinearWeight
    mlp_norm: torch.Tensor
    gate_up: LinearWeight
    down: LinearWeight


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights; the embedding [vocabulary, hidden] is a plain tensor, for it is indexed."""

    embedding: torch.Tensor
    layers: Sequence[LayerWeights]
    norm: torch.Tensor
    logits: LinearWeight


@dataclass(frozen=True, slots=True)
class RopeTables:
    """Cosines and sines of every position of the context, [positions, head dim] each."""

    cos: torch.Tensor
    sin: torch.Tensor

    def of(self, positions: torch.Tensor) -> RopeTable:
        """Those of a step's positions, with a dimension for the heads."""
        return RopeTable(self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1))


class Decoder:
    """A loaded model.

    Args:
        config: Its shape.
        weights: Laid out by `ops`.
        rope: Tables that reach as far as the context.
        ops: The operations of its device.
    """

    def __init__(self, *, config: ModelConfig, weights: DecoderWeights, rope: RopeTables, ops: Ops) -> None:
        self.config = config
        self.ops = ops
        self._weights = weights
        self._rope = rope
        self._shape = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)

    def forward(self, batch: ForwardBatch, pool: torch.Tensor) -> torch.Tensor:
        """Compute a step: KV of all its stored positions is written into the pool.

        Args:
            batch: The step.
            pool: [blocks, layers, 2, kv heads, block tokens, head dim].

        Returns:
            Logits of the batch's `logit_tokens`, [logit rows, vocabulary].
        """
        ops, eps = self.ops, self.config.norm_eps
        plan = ops.plan_attention(batch)
        rope = self._rope.of(batch.positions)
        hidden = self._weights.embedding[batch.token_ids]
        residual: torch.Tensor | None = None
        for index, layer in enumerate(self._weights.layers):
            kv = pool[:, index]
            normed, residual = ops.rms_norm(hidden, layer.input_norm, eps, residual)
            qkv = ops.linear(normed, layer.qkv)
            q = ops.qk_norm_rope_store(
                qkv, norm=layer.qk_norm, eps=eps, rope=rope, kv=kv, batch=batch, shape=self._shape
            )
            hidden = ops.linear(ops.attention(q, kv, plan, self._shape), layer.out)
            normed, residual = ops.rms_norm(hidden, layer.mlp_norm, eps, residual)
            hidden = ops.linear(ops.silu_mul(ops.linear(normed, layer.gate_up)), layer.down)
        wanted = batch.logit_tokens
        last = None if residual is None else residual[wanted]
        normed, _ = ops.rms_norm(hidden[wanted], self._weights.norm, eps, last)
        return ops.linear(normed, self._weights.logits)
