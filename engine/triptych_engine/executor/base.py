"""The contract between the core loop and what computes.

`StepPlan` says what one step computes; there is no prefill phase and no decode phase inside a step: each row
lets computed tokens catch up with known tokens. `execute` is called by one thread only, and is rank-agnostic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from triptych_contract.profile import StepProfile
from triptych_engine.kv.layout import KVLayout
from triptych_engine.messages import Embedding, TokenLogprobs

PADDING_BLOCK = 0
"""Physical block that no request owns; padded rows write there, and it is outside of all counts."""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to choose the token after a row's last position.

    Attributes:
        temperature, top_p, top_k, min_p: As in `SamplingParams`; temperature 0 or top_k 1 is greedy.
        seed, prompt_index, choice, position: Arguments of `triptych_contract.sampling.uniform`.
        logprobs: Number of alternatives to report; None reports nothing.
        banned: Token ids that must not be chosen (end and stop tokens before `min_tokens`).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    prompt_index: int = 0
    choice: int = 0
    position: int = 0
    logprobs: int | None = None
    banned: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """True if the most likely token is wanted."""
        return self.temperature == 0.0 or self.top_k == 1


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One sequence's share of a step.

    Attributes:
        sequence: Handle of the sequence, for results.
        token_ids: Tokens to compute, of positions `first_position` … `first_position + len(token_ids) - 1`.
        first_position: Position of the first of them; all earlier positions are in the KV blocks.
        block_table: Physical blocks of the sequence, covering at least the last position of this row.
        stored_from: KV of positions below this one is not written, because it stands in a block that may
            be shared (recomputed last prompt position); at least `first_position`.
        sample: Set if the logits of the last position are sampled.
        embeddings: Input embeddings that replace those of some positions of the prompt.
    """

    sequence: int
    token_ids: Sequence[int]
    first_position: int
    block_table: Sequence[int]
    stored_from: int
    sample: SampleSpec | None = None
    embeddings: tuple[Embedding, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one engine step computes."""

    rows: tuple[PlanRow, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the step."""
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen after one row; a later executor may return several."""

    sequence: int
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """What the core must know of the model.

    Attributes:
        layout: Geometry of the KV pool.
        kv_dtype: Element type of KV.
        fingerprint: Of weights and configuration; equal only for equal models.
        vocab_size: Number of token ids.
        max_context: Longest sequence in tokens.
        profile: Prior of the step time.
        embedding_dtype, embedding_bytes: Of one row of input embeddings; empty and 0 if none are taken.
    """

    layout: KVLayout
    kv_dtype: str
    fingerprint: str
    vocab_size: int
    max_context: int
    profile: StepProfile = field(default_factory=StepProfile)
    embedding_dtype: str = ""
    embedding_bytes: int = 0


class Executor(Protocol):
    """Computes steps over a KV pool that the core owns."""

    @property
    def info(self) -> ExecutorInfo:
        """Known once the executor is made."""
        ...

    def bind(self, pool: memoryview) -> None:
        """Take the pool's bytes (`info.layout.pool_bytes` of shared memory); called once, before any step.

        On a CPU the KV itself lives there; on an accelerator it is the mirror for hand-overs.
        """
        ...

    def warm_up(self) -> None:
        """Run what makes the first real step as fast as later ones."""
        ...

    def execute(self, plan: StepPlan) -> list[Sampled]:
        """Compute a step: write KV of all its positions, then sample where asked.

        Returns:
            One entry for each row with a `sample`, in row order.
        """
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole physical blocks (source, target), for forks of a partial block."""
        ...

    def export_blocks(self, blocks: Sequence[int]) -> None:
        """Make the pool's bytes of these blocks current, before they are sent; nothing to do on a CPU."""
        ...

    def import_blocks(self, blocks: Sequence[int]) -> None:
        """Take over blocks whose pool bytes were received; nothing to do on a CPU."""
        ...

    def encode(self, data: bytes, count: int) -> bytes:
        """Embeddings of one image: `count` rows of `info.embedding_bytes`.

        Raises:
            ValueError: The model takes no images.
        """
        ...


LoadProgress = Callable[[int, str], None]
"""Called with percent and a few words while weights load."""
