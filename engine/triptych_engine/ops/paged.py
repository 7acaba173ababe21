"""Attention over paged KV in few large matrix products, for any device.

Rows with one query (decode) are gathered and multiplied together, grouped by length so that padding stays
small. Rows with more queries (prefill) are cut into chunks of queries: beyond that the scores fall out of the
cache, and a chunk sees no more context than its last query, which saves half of a square. On CPUs this is two to
four times faster than the fused attention of torch, which is slow for one query and for masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triptych_engine.ops.base import HeadShape
from triptych_engine.ops.batch import ForwardBatch, pad_tables
from triptych_engine.ops.reference import softmax

QUERY_CHUNK = 128
"""Queries scored at once in prefill; 128 to 256 rows keep the scores of one head in a core's cache."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows with one query each and about the same number of blocks.

    Attributes:
        tokens: Their tokens [rows].
        table: Their blocks [rows, blocks].
        beyond: True at positions past a row's context [rows, 1, 1, positions].
        sound: Positions below this one are in the context of every row.
    """

    tokens: torch.Tensor
    table: torch.Tensor
    beyond: torch.Tensor
    sound: int


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """One row with several queries: its tokens, its blocks, and the number of its context positions."""

    first: int
    end: int
    table: torch.Tensor
    context: int


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """What all layers of one step share."""

    decode: tuple[DecodeGroup, ...]
    prefill: tuple[PrefillRow, ...]


def plan_paged(batch: ForwardBatch, rows: Sequence[int], *, block_tokens: int, device: torch.device) -> PagedPlan:
    """Sort some rows of a batch into groups of decode rows and prefill rows."""
    groups: dict[int, list[int]] = {}
    prefill: list[PrefillRow] = []
    for row in rows:
        if batch.query_length(row) == 1:
            groups.setdefault(_size_class(len(batch.block_tables[row])), []).append(row)
        else:
            table = torch.from_numpy(batch.block_tables[row]).to(device)
            prefill.append(
                PrefillRow(batch.query_starts[row], batch.query_starts[row + 1], table, batch.context_lengths[row])
            )
    decode = tuple(_decode_group(batch, alike, block_tokens, device) for alike in groups.values())
    return PagedPlan(decode, tuple(prefill))


def paged_attention(
    q: torch.Tensor, kv: torch.Tensor, plan: PagedPlan, shape: HeadShape, out: torch.Tensor
) -> torch.Tensor:
    """Attention of the plan's rows of q [tokens, heads, head dim], written into `out` of that shape.

    Returns:
        `out` as [tokens, heads · head dim].
    """
    for group in plan.decode:
        out[group.tokens] = _decode(q[group.tokens], kv, group, shape)
    for row in plan.prefill:
        _prefill(q, kv, row, shape, out)
    return out.view(len(q), -1)


def _size_class(blocks: int) -> int:
    """Rows of one class waste at most a quarter of a gather: 1, 2, 3, 4, 5–6, 7–8, 9–12, 13–16, …"""
    if blocks <= 4:
        return blocks
    step = 1 << ((blocks - 1).bit_length() - 2)
    return -(-blocks // step) * step


def _decode_group(batch: ForwardBatch, rows: list[int], block_tokens: int, device: torch.device) -> DecodeGroup:
    table = pad_tables([batch.block_tables[row] for row in rows], device)
    contexts = [batch.context_lengths[row] for row in rows]
    positions = torch.arange(table.shape[1] * block_tokens, device=device)
    beyond = positions >= torch.tensor(contexts, device=device).unsqueeze(1)
    return DecodeGroup(
        tokens=torch.tensor([batch.query_starts[row] for row in rows], device=device),
        table=table,
        beyond=beyond[:, None, None, :],
        sound=min(contexts),
    )


def _gather(kv: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Blocks of a table [rows, blocks] as contiguous runs, [2, rows, kv heads, positions, head dim].

    `index_select` copies whole blocks; indexing with a tensor does the same three times slower.
    """
    rows, blocks = table.shape
    _, _, kv_heads, block_tokens, head_dim = kv.shape
    picked = torch.index_select(kv, 0, table.flatten()).view(rows, blocks, 2, kv_heads, block_tokens, head_dim)
    return picked.permute(2, 0, 3, 1, 4, 5).reshape(2, rows, kv_heads, blocks * block_tokens, head_dim)


def _decode(q: torch.Tensor, kv: torch.Tensor, group: DecodeGroup, shape: HeadShape) -> torch.Tensor:
    rows = len(group.table)
    dense = _gather(kv, group.table)
    keys, values = dense[0], dense[1]  # [rows, kv heads, positions, head dim] each
    # Slots past the context hold anything; a weight of zero times what is not a number would still spoil the sum.
    values[:, :, group.sound :].masked_fill_(group.beyond[:, :, 0, group.sound :, None], 0)
    queries = q.view(rows, shape.kv_heads, -1, shape.head_dim)  # [rows, kv heads, group, head dim]
    scores = (queries @ keys.transpose(2, 3)) * shape.scale
    weights = softmax(scores.masked_fill_(group.beyond, float("-inf")))
    return (weights @ values).view(rows, shape.heads, shape.head_dim)


def _prefill(q: torch.Tensor, kv: torch.Tensor, row: PrefillRow, shape: HeadShape, out: torch.Tensor) -> None:
    dense = _gather(kv, row.table.unsqueeze(0))[:, 0]
    keys, values = (
        dense[0].transpose(1, 2),
        dense[1],
    )  # [kv heads, head dim, positions], [kv heads, positions, head dim]
    group = shape.heads // shape.kv_heads
    for first in range(row.first, row.end, QUERY_CHUNK):
        end = min(first + QUERY_CHUNK, row.end)
        count = end - first
        seen = row.context - (row.end - end)
        queries = q[first:end].view(count, shape.kv_heads, group, shape.head_dim).permute(1, 2, 0, 3)
        queries = queries.reshape(shape.kv_heads, group * count, shape.head_dim)
        scores = (queries @ keys[:, :, :seen]).mul_(shape.scale).view(shape.kv_heads, group, count, seen)
        later = torch.ones(count, count, dtype=torch.bool, device=q.device).triu(1)
        scores[..., seen - count :].masked_fill_(later, float("-inf"))
        weights = softmax(scores).view(shape.kv_heads, group * count, seen)
        mixed = (weights @ values[:, :seen]).view(shape.kv_heads, group, count, shape.head_dim)
        out[first:end] = mixed.permute(2, 0, 1, 3).reshape(count, shape.heads, shape.head_dim)
