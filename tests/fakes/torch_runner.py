"""Drives a `TorchExecutor` by hand-made step plans: chunks, shared blocks, any mix of rows in a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.executor.torch import TorchExecutor, load_torch, pool_shape
from triptych_engine.model.config import read_config
from triptych_engine.model.decoder import Decoder
from triptych_engine.model.load import load_decoder
from triptych_engine.model.tensors import find_tensors
from triptych_engine.ops.batch import build_batch
from triptych_engine.ops.cpu import CpuOps

BLOCK = 32


def load(
    folder: Path, *, dtype: str = "float32", blocks: int = 64, max_context: int = 256, kernels: str = "off"
) -> TorchExecutor:
    """An executor on one thread, bound to a pool of its own."""
    executor = load_torch(
        model_dir=folder,
        dtype=dtype,
        device="cpu",
        threads=1,
        kv_blocks=blocks,
        kv_memory_bytes=0,
        max_context=max_context,
        progress=lambda percent, text: None,
        kernels=kernels,
    )
    rebind(executor)
    return executor


def rebind(executor: TorchExecutor) -> memoryview:
    """Give the executor a new, empty pool; the bytes of it."""
    pool = memoryview(bytearray(executor.info.layout.pool_bytes))
    executor.bind(pool)
    return pool


@dataclass
class Lane:
    """One sequence: known tokens, computed positions, its blocks."""

    handle: int
    tokens: list[int]
    table: list[int]
    computed: int = 0
    stored_from: int = 0
    out: list[int] = field(default_factory=list)

    def row(self, count: int) -> PlanRow:
        """The next `count` known tokens; samples if they are the last ones."""
        end = self.computed + count
        return PlanRow(
            sequence=self.handle,
            token_ids=self.tokens[self.computed : end],
            first_position=self.computed,
            block_table=self.table,
            stored_from=max(self.stored_from, self.computed),
            sample=SampleSpec() if end == len(self.tokens) else None,
        )


class Runner:
    """Sequences over one executor; blocks are handed out once and never come back."""

    def __init__(self, executor: TorchExecutor) -> None:
        self.executor = executor
        self.sequences: dict[int, Lane] = {}
        self._next_block = 1

    def blocks(self, count: int) -> list[int]:
        """Fresh blocks."""
        first = self._next_block
        self._next_block += count
        return list(range(first, first + count))

    def add(self, tokens: Sequence[int], *, room: int, shared: Sequence[int] = (), computed: int = 0) -> Lane:
        """A sequence with room for `room` more tokens; `shared` blocks come first in its table."""
        needed = -(-(len(tokens) + room) // BLOCK) - len(shared)
        sequence = Lane(
            len(self.sequences), list(tokens), [*shared, *self.blocks(needed)], computed, len(shared) * BLOCK
        )
        self.sequences[sequence.handle] = sequence
        return sequence

    def step(self, shares: Sequence[tuple[Lane, int]]) -> None:
        """Compute so many tokens of each sequence."""
        rows = tuple(sequence.row(count) for sequence, count in shares)
        sampled = self.executor.execute(StepPlan(rows))
        for sequence, count in shares:
            sequence.computed += count
        for choice in sampled:
            sequence = self.sequences[choice.sequence]
            sequence.tokens.append(choice.token_id)
            sequence.out.append(choice.token_id)

    def run_alone(self, sequence: Lane, count: int, chunk: int = 512) -> list[int]:
        """Compute and sample until `count` tokens are out."""
        while len(sequence.out) < count:
            self.step([(sequence, min(chunk, len(sequence.tokens) - sequence.computed))])
        return sequence.out


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, max_context: int = 256) -> Decoder:
    """The decoder alone, on CPU operations."""
    return load_decoder(
        config=read_config(folder),
        places=find_tensors(folder),
        ops=CpuOps(dtype=dtype),
        max_context=max_context,
        progress=lambda percent, text: None,
    )


@dataclass
class Scratch:
    """A decoder over a small pool with one sequence in it, for logits of every position."""

    decoder: Decoder
    blocks: int = 8

    def __post_init__(self) -> None:
        self.pool = torch.zeros(pool_shape(self.decoder, self.blocks + 1), dtype=self.decoder.ops.dtype)
        self.table = list(range(1, self.blocks + 1))
        self.computed = 0

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Compute the next tokens in one step; logits of all of them [tokens, vocabulary]."""
        row = PlanRow(0, tokens, self.computed, self.table, self.computed, SampleSpec())
        batch = build_batch(StepPlan((row,)), block_tokens=BLOCK, device=self.decoder.ops.device)
        self.computed += len(tokens)
        with torch.inference_mode():
            return self.decoder.forward(replace(batch, logit_tokens=torch.arange(len(tokens))), self.pool)
