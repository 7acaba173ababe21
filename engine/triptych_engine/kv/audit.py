"""The audit: recounts references and leases from their owners and compares them with the pool.

It shares no counter with the pool, so a block that leaked, was freed twice or is counted in two states shows.
It runs in tests after every step, in production while the core is idle, and on the server's demand.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from triptych_engine.executor.base import PADDING_BLOCK
from triptych_engine.kv.blocks import BlockPool, BlockState
from triptych_engine.kv.prefix import PrefixCache

MAX_FAULTS = 32
"""Faults reported; one cause tends to show in many blocks."""


def audit(
    pool: BlockPool,
    prefix: PrefixCache,
    *,
    tables: Iterable[Sequence[int]],
    leases: Mapping[str, Sequence[int]],
) -> tuple[str, ...]:
    """Faults of block conservation; none in health.

    Args:
        pool: The pool to check.
        prefix: Its prefix cache.
        tables: Block tables of all sequences that hold blocks.
        leases: Blocks under each lease.
    """
    references = Counter(block for table in tables for block in table)
    leased = Counter(block for blocks in leases.values() for block in blocks)
    faults = [
        *_count_faults(pool, references, leased),
        *_state_faults(pool, prefix, references, leased),
        *_prefix_faults(pool, prefix),
    ]
    return tuple(faults[:MAX_FAULTS])


def _count_faults(pool: BlockPool, references: Counter[int], leased: Counter[int]) -> Iterable[str]:
    if references[PADDING_BLOCK] or leased[PADDING_BLOCK]:
        yield "the padding block is owned"
    for block in range(1, pool.total + 1):
        if pool.refs(block) != references[block]:
            yield f"block {block}: {pool.refs(block)} references counted, {references[block]} found"
        if pool.leases(block) != leased[block]:
            yield f"block {block}: {pool.leases(block)} leases counted, {leased[block]} found"


def _state_faults(
    pool: BlockPool, prefix: PrefixCache, references: Counter[int], leased: Counter[int]
) -> Iterable[str]:
    free = pool.free_blocks()
    if len(set(free)) != len(free):
        yield "a block is free twice"
    free_set = set(free)
    found: Counter[BlockState] = Counter()
    for block in range(1, pool.total + 1):
        if leased[block]:
            state = BlockState.IN_TRANSFER
        elif references[block]:
            state = BlockState.HELD
        else:
            state = BlockState.CACHED if block in prefix else BlockState.FREE
        found[state] += 1
        if (state is BlockState.FREE) != (block in free_set):
            yield f"block {block} is {state} and {'on' if block in free_set else 'not on'} the free list"
        if (state is BlockState.CACHED) != prefix.is_idle(block):
            yield f"block {block} is {state} and {'idle' if prefix.is_idle(block) else 'not idle'} in the cache"
    counts = pool.counts()
    for state in BlockState:
        counted: int = getattr(counts, state.value)
        if counted != found[state]:
            yield f"{counted} blocks counted as {state}, {found[state]} found"
    if counts.free + counts.cached + counts.held + counts.in_transfer != counts.total:
        yield "the counts do not add up to the pool"


def _prefix_faults(pool: BlockPool, prefix: PrefixCache) -> Iterable[str]:
    entries = prefix.entries()
    if len({entry.block for entry in entries}) != len(entries):
        yield "two hashes name one block"
    for entry in entries:
        if not 0 < entry.block <= pool.total or entry.block not in prefix:
            yield f"the prefix cache names block {entry.block}, which it does not keep"
