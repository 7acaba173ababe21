"""Views of the valid bytes of KV blocks in the shared pool.

A full block is one contiguous view, sent and received without a copy. The valid tokens of a partial block are
the first slots of every segment: they are gathered into one run to be sent, and scattered from one run when
received. The other slots may hold another request's stale KV and are never read.
"""

import numpy as np

from triptych_engine.kv.layout import KVLayout


class BlockPool:
    """The pool's bytes, by block.

    Holds no exported buffer but the view that it was given, so the mapping can be closed once that is released.

    Args:
        layout: Geometry.
        memory: `layout.pool_bytes` of writable shared memory.
    """

    def __init__(self, layout: KVLayout, memory: memoryview) -> None:
        if memory.nbytes < layout.pool_bytes:
            raise ValueError("the pool is smaller than its layout")
        self.layout = layout
        self._memory = memory.cast("B")

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.release()

    def holds(self, block: int, tokens: int) -> bool:
        """True for a block that a request can own, with a possible number of valid tokens."""
        return 0 < block < self.layout.num_blocks and 0 < tokens <= self.layout.block_tokens

    def whole(self, block: int) -> memoryview:
        """All bytes of a block, in place."""
        first = block * self.layout.block_bytes
        return self._memory[first : first + self.layout.block_bytes]

    def valid(self, block: int, tokens: int) -> memoryview:
        """The bytes of the first `tokens` slots of every segment: in place if the block is full, else a copy."""
        if tokens == self.layout.block_tokens:
            return self.whole(block)
        return memoryview(self._slots(block, tokens).tobytes())

    def scatter(self, block: int, tokens: int, run: memoryview) -> None:
        """Write what `valid` gathered into the first `tokens` slots of every segment; other slots stay."""
        slots = self._slots(block, tokens)
        slots[:] = np.frombuffer(run, np.uint8).reshape(slots.shape)

    def _slots(self, block: int, tokens: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The valid slots as an array of [segments, tokens * token_bytes] over the pool itself."""
        segments = np.frombuffer(self.whole(block), np.uint8).reshape(self.layout.segments, self.layout.segment_bytes)
        return segments[:, : tokens * self.layout.token_bytes]
