"""The simulated model: a deterministic integer language model whose memory is the bytes of its KV blocks.

Position `p` with content `c` (a token, or a row of image embeddings) is remembered as

    sum(p)  = sum(p - 1) + mix(c, p)            segment 0: depends on all of the context, like a model's KV
    mark(p) = mix(sum(p), p)                    segment 1

and the next token is drawn from a distribution that is a function of *every* slot of the context, read back
through the block table and mixed with its index. A block that is swapped, missing, half copied or somebody
else's therefore changes the text. All sums are modulo 2**64, so the result does not depend on how a prompt was
cut into chunks, on the rest of the batch, or on where the blocks lie.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from triptych_engine.executor.base import PlanRow
from triptych_engine.kv.layout import KVLayout

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]

SEGMENTS = 2
WORD_BYTES = 8

_U = np.uint64
_GOLDEN = _U(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the increment of splitmix64
_POSITION = _U(0xD1B54A32D192ED03)
_INDEX = _U(0x8CB92BA72F3D8DD7)
_SEGMENT = np.array([0x2545F4914F6CDD1D, 0x6C8E9CF570932BD5], dtype=np.uint64)
_FILLER = _U(0xA0761D6478BD642F)
_IMAGE_BIT = _U(1 << 63)


def mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on each word."""
    words = (words + _GOLDEN).astype(np.uint64, copy=True)
    words ^= words >> _U(30)
    words *= _U(0xBF58476D1CE4E5B9)
    words ^= words >> _U(27)
    words *= _U(0x94D049BB133111EB)
    words ^= words >> _U(31)
    return words


def contents(row: PlanRow, *, embedding_bytes: int) -> Words:
    """One word for each position of the row: its token, or the hash of its embedding."""
    words = np.asarray(row.token_ids, dtype=np.uint64)
    for one in row.embeddings:
        if len(one.data) != one.count * embedding_bytes:
            raise ValueError("embeddings of another size than the model's")
        for index in range(one.count):
            at = one.first + index - row.first_position
            if 0 <= at < len(words):
                data = one.data[index * embedding_bytes : (index + 1) * embedding_bytes]
                words[at] = _U(xxhash.xxh3_64_intdigest(data)) | _IMAGE_BIT
    return words


class SimMemory:
    """Reads and writes context in the KV pool.

    Args:
        layout: Of the pool; `token_bytes` is a multiple of `WORD_BYTES`.
        pool: Its bytes.
    """

    def __init__(self, layout: KVLayout, pool: memoryview) -> None:
        self._width = layout.block_tokens
        slot_words = layout.token_bytes // WORD_BYTES
        shape = (layout.num_blocks, SEGMENTS, layout.block_tokens, slot_words)
        # [blocks, segments, slots, words of a slot]
        self._words: Words = np.frombuffer(pool, dtype=np.uint64, count=int(np.prod(shape))).reshape(shape)
        self._filler = np.arange(1, slot_words, dtype=np.uint64) * _FILLER

    def write(self, row: PlanRow, words: Words) -> None:
        """Remember the row's positions, except those that stand in blocks that may be shared."""
        first = row.first_position
        positions = np.arange(first, first + len(words), dtype=np.uint64)
        table = np.asarray(row.block_table, dtype=np.intp)
        before = self._words[table[(first - 1) // self._width], 0, (first - 1) % self._width, 0] if first else _U(0)
        steps = mix(words ^ (positions * _POSITION))
        steps[0:1] += before
        keep = slice(row.stored_from - first, None)
        where = np.arange(first, first + len(words))[keep]
        sums = np.cumsum(steps, dtype=np.uint64)[keep]
        self._store(table[where // self._width], where % self._width, sums, positions[keep])

    def write_singles(self, rows: Sequence[PlanRow], words: Words) -> None:
        """What `write` does, for many rows of one position each: a decode step in a few calls."""
        kept = [index for index, row in enumerate(rows) if row.stored_from == row.first_position > 0]
        for index in set(range(len(rows))) - set(kept):
            self.write(rows[index], words[index : index + 1])
        if not kept:
            return
        width = self._width
        tables = [(rows[index].block_table, rows[index].first_position) for index in kept]
        where = np.array([position for _, position in tables])
        blocks = np.array([table[position // width] for table, position in tables])
        blocks_before = np.array([table[(position - 1) // width] for table, position in tables])
        positions = where.astype(np.uint64)
        sums = self._words[blocks_before, 0, (where - 1) % width, 0] + mix(words[kept] ^ (positions * _POSITION))
        self._store(blocks, where % width, sums, positions)

    def _store(self, blocks: Indices, offsets: Indices, sums: Words, positions: Words) -> None:
        slots = np.stack([sums, mix(sums ^ (positions * _INDEX))], axis=1)  # [positions, segments]
        self._words[blocks, :, offsets, 0] = slots
        if len(self._filler):
            self._words[blocks, :, offsets, 1:] = mix(slots[:, :, None] ^ self._filler)

    def read(self, rows: Sequence[PlanRow]) -> list[int]:
        """The state of mind after the last position of each row: a word made of all slots of its context."""
        lengths = [row.first_position + len(row.token_ids) for row in rows]
        tables = [
            np.asarray(row.block_table[: -(-length // self._width)], dtype=np.intp)
            for row, length in zip(rows, lengths, strict=True)
        ]
        slots = self._words[np.concatenate(tables), :, :, 0]  # [blocks of all rows, segments, slots]
        index = np.concatenate([np.arange(len(table)) for table in tables])
        # [blocks of all rows, slots]
        positions: Words = (index[:, None] * self._width + np.arange(self._width)).astype(np.uint64)
        salted: Words = slots ^ (positions * _INDEX)[:, None, :] ^ _SEGMENT[None, :, None]
        mixed = mix(salted).sum(axis=1, dtype=np.uint64)
        ends = np.concatenate(
            [np.full(len(table), length, np.uint64) for table, length in zip(tables, lengths, strict=True)]
        )
        mixed[positions >= ends[:, None]] = 0
        starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
        states = np.add.reduceat(mixed.sum(axis=1, dtype=np.uint64), starts, dtype=np.uint64)
        states = mix(states ^ (np.asarray(lengths, dtype=np.uint64) * _POSITION))
        return [
            int(state) ^ self._filler_faults(row, length)
            for state, row, length in zip(states, rows, lengths, strict=True)
        ]

    def _filler_faults(self, row: PlanRow, length: int) -> int:
        """0 if the rest of every slot is what its first word says; checked where an output begins.

        The filler only gives slots a realistic size. After its prompt was computed or pulled, a sequence's
        blocks never leave this pool again, so one look is enough.
        """
        if not len(self._filler) or row.sample is None or row.sample.position:
            return 0
        faults = 0
        for index, block in enumerate(row.block_table[: -(-length // self._width)]):
            slots = self._words[block, :, : min(self._width, length - index * self._width)]
            wrong = slots[:, :, 1:] != mix(slots[:, :, :1] ^ self._filler)
            faults += int(wrong.sum()) * (index + 1)
        return faults

    def copy(self, source: int, target: int) -> None:
        """Copy one block."""
        self._words[target] = self._words[source]
