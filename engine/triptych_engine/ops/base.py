"""The operations that models are written over, one to one with what accelerators offer.

Every operation has a plain-torch reference (`ops.reference`), which is fallback, oracle of the tests, and the
check for devices whose hardware is not at hand. A backend owns its block size and how weights are laid out.

    linear · rms_norm · qk_norm_rope_store · attention (variable lengths, over paged KV) · silu_mul · sample · kv_copy

A mixture of experts is one more operation here (`moe`: router logits, expert weights → hidden); it comes with
the first model that has experts.

Shapes: `tokens` are those of all rows end to end. KV of one layer is [blocks, 2, kv heads, block tokens, head dim],
a view into the pool [blocks, layers, 2, kv heads, block tokens, head dim], where a block is contiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from triptych_engine.executor.base import SampleSpec
from triptych_engine.ops.batch import ForwardBatch
from triptych_engine.ops.choice import Choice


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight as its backend wants it.

    Attributes:
        data: [outputs, inputs], or the backend's own packing of it.
        bias: [outputs], or None.
        inputs, outputs: Widths.
        packed: True if `data` is in the backend's own packing.
    """

    data: torch.Tensor
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of one layer's attention."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Cosines and sines of the step's positions, [tokens, 1, head dim] each, the two halves alike."""

    cos: torch.Tensor
    sin: torch.Tensor


class Ops(Protocol):
    """The operations of one device and element type. No call keeps a tensor it was given."""

    device: torch.device
    dtype: torch.dtype
    block_tokens: int

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
        """Lay a weight [outputs, inputs] out for `linear`; the original may be dropped."""
        ...

    def linear(self, x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        """[tokens, inputs] → [tokens, outputs]."""
        ...

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add `x` to the residual if there is one, then norm the sum.

        Returns:
            The normed sum, and the sum itself as the next residual; both [tokens, hidden].
        """
        ...

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
        """Norm queries and keys by head, turn them by their positions, write keys and values to their slots.

        Args:
            qkv: [tokens, (heads + 2 kv heads) · head dim]; may be overwritten.
            norm: [heads + kv heads, head dim], or None for models without these norms.
            eps: Of the norms.
            rope: Of the tokens' positions.
            kv: One layer's KV; changed in the batch's slots, and nowhere else.
            batch: Slots of the tokens.
            shape: Of the heads.

        Returns:
            Queries [tokens, heads, head dim].
        """
        ...

    def plan_attention(self, batch: ForwardBatch) -> Any:
        """What all layers of a step share: index tensors and masks."""
        ...

    def attention(self, q: torch.Tensor, kv: torch.Tensor, plan: Any, shape: HeadShape) -> torch.Tensor:
        """Causal attention of each row over its context in the paged KV, [tokens, heads · head dim]."""
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[tokens, 2 · wide] → silu of the first half times the second, [tokens, wide]."""
        ...

    def sample(self, logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[Choice]:
        """Choose a token for each row of [rows, vocabulary]."""
        ...

    def kv_copy(self, pool: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, target) of the pool; no target is also a source."""
        ...
