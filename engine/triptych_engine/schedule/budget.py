"""Bounds of a step and of admission."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What one step may take.

    Attributes:
        block_tokens: Tokens a block.
        max_batch_tokens: Tokens computed in one step.
        max_sequences: Sequences that run or pull at the same time.
        max_lease_blocks: Blocks that leases may hold.
    """

    block_tokens: int
    max_batch_tokens: int
    max_sequences: int
    max_lease_blocks: int

    def __post_init__(self) -> None:
        if min(self.block_tokens, self.max_batch_tokens, self.max_sequences) < 1:
            raise ValueError("a budget needs room for one token of one sequence")

    @property
    def sequences(self) -> int:
        """Sequences at the same time; never more than tokens, so that each running one gets its token."""
        return min(self.max_sequences, self.max_batch_tokens)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.block_tokens)


def lease_blocks(*, total: int, share_percent: int) -> int:
    """Blocks that leases may hold together."""
    return total * share_percent // 100
