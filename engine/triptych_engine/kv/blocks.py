"""The block pool: who references which block, and in which one of four states each block is counted.

    in transfer > held > cached > free

A block under a lease is *in transfer*, else one that a request references is *held*, else one that the prefix
cache keeps is *cached*, else it is *free*. The four counts always add up to the pool without its padding
block. Cached blocks are given up when free ones run out; referenced and leased blocks never are.
"""

from collections.abc import Sequence
from enum import StrEnum

from triptych_contract.instance import BlockCounts
from triptych_engine.executor.base import PADDING_BLOCK
from triptych_engine.kv.prefix import PrefixCache


class BlockState(StrEnum):
    """Where a block is counted."""

    FREE = "free"
    CACHED = "cached"
    HELD = "held"
    IN_TRANSFER = "in_transfer"


class BlockFault(RuntimeError):
    """The pool was used against its rules: a defect of ours, never a client's doing."""


class OutOfBlocks(LookupError):
    """Fewer blocks are available than asked for; nothing was allocated."""


class BlockPool:
    """Reference counts of the physical blocks of one KV pool.

    Args:
        num_blocks: Blocks of the pool, the padding block among them.
        prefix: The cache that keeps blocks which nobody references.
    """

    def __init__(self, num_blocks: int, prefix: PrefixCache) -> None:
        if num_blocks < 2:
            raise ValueError("a KV pool needs one block beside the padding block")
        self._prefix = prefix
        self._refs = [0] * num_blocks
        self._leases = [0] * num_blocks
        self._free = list(range(num_blocks - 1, PADDING_BLOCK, -1))
        self._held = 0
        self._in_transfer = 0

    @property
    def total(self) -> int:
        """Blocks without the padding block."""
        return len(self._refs) - 1

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: free and cached ones."""
        return len(self._free) + self._prefix.num_idle

    @property
    def in_transfer(self) -> int:
        """Blocks under a lease."""
        return self._in_transfer

    def counts(self) -> BlockCounts:
        """The four counts and their sum."""
        return BlockCounts(
            free=len(self._free),
            cached=self._prefix.num_idle,
            held=self._held,
            in_transfer=self._in_transfer,
            total=self.total,
        )

    def state(self, block: int) -> BlockState:
        """Where the block is counted."""
        if self._leases[block]:
            return BlockState.IN_TRANSFER
        if self._refs[block]:
            return BlockState.HELD
        return BlockState.CACHED if block in self._prefix else BlockState.FREE

    def refs(self, block: int) -> int:
        """References of requests to the block."""
        return self._refs[block]

    def leases(self, block: int) -> int:
        """Leases over the block."""
        return self._leases[block]

    def free_blocks(self) -> list[int]:
        """The free list, for the audit."""
        return list(self._free)

    def allocate(self, count: int) -> list[int]:
        """Blocks with one reference each; cached ones are evicted when the free ones do not suffice.

        Raises:
            OutOfBlocks: Fewer than `count` blocks are available; nothing has changed.
        """
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks wanted, {self.available} available")
        blocks = [self._free.pop() if self._free else self._prefix.evict() for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
        self._held += count
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference to blocks that are not free."""
        for block in blocks:
            if self.state(block) is BlockState.FREE:
                raise BlockFault(f"block {block} is free and cannot be shared")
            self._wake(block)
            self._refs[block] += 1
            if self._refs[block] == 1 and not self._leases[block]:
                self._held += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less; in reverse order, so that the end of a chain grows old before its head."""
        for block in reversed(blocks):
            if not self._refs[block]:
                raise BlockFault(f"block {block} is not referenced")
            self._refs[block] -= 1
            if self._refs[block] == 0 and not self._leases[block]:
                self._held -= 1
                self._rest(block)

    def lease(self, blocks: Sequence[int]) -> None:
        """Put referenced blocks under one more lease; the references may be released afterwards."""
        for block in blocks:
            if not self._refs[block]:
                raise BlockFault(f"block {block} is not referenced and cannot be leased")
            self._leases[block] += 1
            if self._leases[block] == 1:
                self._held -= 1
                self._in_transfer += 1

    def unlease(self, blocks: Sequence[int]) -> None:
        """One lease less."""
        for block in reversed(blocks):
            if not self._leases[block]:
                raise BlockFault(f"block {block} is not leased")
            self._leases[block] -= 1
            if self._leases[block]:
                continue
            self._in_transfer -= 1
            if self._refs[block]:
                self._held += 1
            else:
                self._rest(block)

    def _wake(self, block: int) -> None:
        if self._prefix.is_idle(block):
            self._prefix.wake(block)

    def _rest(self, block: int) -> None:
        if block in self._prefix:
            self._prefix.rest(block)
        else:
            self._free.append(block)
