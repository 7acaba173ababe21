"""The tensors of one step: sequences of unequal lengths laid end to end, without padding.

Positions are [tokens] here; a model with 3-row positions (mrope) widens them to [3, tokens]. Draft tokens are
further tokens of a row with more than one logit row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from triptych_engine.executor.base import PADDING_BLOCK, StepPlan

UNSTORED = -1
"""Slot of a position whose KV is not written."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Inputs of one forward pass.

    Attributes:
        token_ids: [tokens].
        positions: [tokens].
        slots: [tokens]; physical block times block size plus offset, `UNSTORED` where nothing is written.
        query_starts: First token of each row, and the number of tokens at the end (rows + 1 numbers).
        context_lengths: KV positions that the last token of each row sees, its own among them.
        block_tables: Each row's physical blocks, just those that hold its context.
        stored: Indices of the tokens that have a slot [stored]; None if all have one.
        logit_tokens: Indices of the tokens whose logits are wanted [logit rows].
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: tuple[int, ...]
    context_lengths: tuple[int, ...]
    block_tables: tuple[npt.NDArray[np.int64], ...]
    stored: torch.Tensor | None
    logit_tokens: torch.Tensor

    @property
    def num_rows(self) -> int:
        """Number of sequences."""
        return len(self.context_lengths)

    def query_length(self, row: int) -> int:
        """Tokens of one row."""
        return self.query_starts[row + 1] - self.query_starts[row]


def build_batch(plan: StepPlan, *, block_tokens: int, device: torch.device) -> ForwardBatch:
    """The tensors of a plan.

    Raises:
        ValueError: A row without tokens, or a block table that does not cover its row.
    """
    starts, contexts, tables, slots = [0], [], [], []
    for row in plan.rows:
        count = len(row.token_ids)
        context = row.first_position + count
        blocks = -(-context // block_tokens)
        if not count or len(row.block_table) < blocks:
            raise ValueError(f"row of sequence {row.sequence}: {count} tokens, {len(row.block_table)} blocks")
        table = np.asarray(row.block_table[:blocks], dtype=np.int64)
        starts.append(starts[-1] + count)
        contexts.append(context)
        tables.append(table)
        slots.append(_slots(table, row.first_position, context, row.stored_from, block_tokens))
    flat_slots = np.concatenate(slots)
    stored = np.flatnonzero(flat_slots >= 0)
    ends = [starts[index + 1] - 1 for index, row in enumerate(plan.rows) if row.sample is not None]
    return ForwardBatch(
        token_ids=_tensor([token for row in plan.rows for token in row.token_ids], device),
        positions=_tensor(np.concatenate([_span(row.first_position, len(row.token_ids)) for row in plan.rows]), device),
        slots=_tensor(flat_slots, device),
        query_starts=tuple(starts),
        context_lengths=tuple(contexts),
        block_tables=tuple(tables),
        stored=None if len(stored) == len(flat_slots) else _tensor(stored, device),
        logit_tokens=_tensor(ends, device),
    )


def pad_tables(tables: Sequence[npt.NDArray[np.int64]], device: torch.device) -> torch.Tensor:
    """Block tables as one tensor [rows, longest]; short ones end with the padding block."""
    padded = np.full((len(tables), max(len(table) for table in tables)), PADDING_BLOCK, dtype=np.int64)
    for index, table in enumerate(tables):
        padded[index, : len(table)] = table
    return _tensor(padded, device)


def _span(first: int, count: int) -> npt.NDArray[np.int64]:
    return np.arange(first, first + count, dtype=np.int64)


def _slots(
    table: npt.NDArray[np.int64], first: int, end: int, stored_from: int, block_tokens: int
) -> npt.NDArray[np.int64]:
    positions = np.arange(first, end, dtype=np.int64)
    slots = table[positions // block_tokens] * block_tokens + positions % block_tokens
    slots[positions < stored_from] = UNSTORED
    return slots


def _tensor(values: Sequence[int] | npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device)
