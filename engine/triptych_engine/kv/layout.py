"""Geometry of the KV pool, and the bytes of one block.

The pool is block-major: a block is one contiguous range, so that a whole block moves in one call. Inside a
block stand `segments` (for a model: layer × (K, V) × head), each with `block_tokens` slots of `token_bytes`.
The valid tokens of a partial block are thus the first slots of every segment.
"""

import msgspec


class KVLayout(msgspec.Struct, frozen=True):
    """Geometry of a pool.

    Attributes:
        num_blocks: Blocks in the pool, the padding block 0 among them.
        segments: Runs of slots in a block.
        block_tokens: Slots of a segment.
        token_bytes: Bytes of a slot.
    """

    num_blocks: int
    segments: int
    block_tokens: int
    token_bytes: int

    @property
    def segment_bytes(self) -> int:
        """Bytes of one segment."""
        return self.block_tokens * self.token_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.segments * self.segment_bytes

    @property
    def pool_bytes(self) -> int:
        """Bytes of the pool."""
        return self.num_blocks * self.block_bytes

    def valid_bytes(self, tokens: int) -> int:
        """Bytes that `tokens` valid tokens of one block take."""
        return self.segments * tokens * self.token_bytes

    def describe(self) -> str:
        """The layout of a block as text, for the link class; the number of blocks may differ between peers."""
        return f"{self.segments}x{self.block_tokens}x{self.token_bytes}"
