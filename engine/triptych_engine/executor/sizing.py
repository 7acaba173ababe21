"""How long a context and how large a KV pool an engine takes when it is not told. Pure; imports no torch."""

import os

from triptych_engine.model.errors import ModelFolderError

DEFAULT_CONTEXT = 8192
"""Tokens that a sequence may have unless more is asked for: models that were made for 128k would else reserve
gigabytes for requests that laptops never see."""
DEFAULT_POOL_BYTES = 1 << 30
POOL_SHARE = 0.25
"""Share of the machine's memory that the default pool may take."""
MIN_SEQUENCES = 2
"""Full contexts that the default pool holds at least, or one long request would starve all others."""


def choose_context(*, asked: int, of_model: int) -> int:
    """Longest sequence in tokens.

    Raises:
        ModelFolderError: More is asked for than the model was made for.
    """
    if asked > of_model:
        raise ModelFolderError(f"max_context is {asked}, but the model's max_position_embeddings is {of_model}.")
    return asked or min(of_model, DEFAULT_CONTEXT)


def choose_blocks(
    *, asked: int, memory_bytes: int, block_bytes: int, context_blocks: int, machine_bytes: int | None = None
) -> int:
    """Blocks of the pool, the padding block among them.

    Args:
        asked: Number of blocks; 0 = by memory.
        memory_bytes: Memory of the pool; 0 = `DEFAULT_POOL_BYTES` or `POOL_SHARE`, whichever is less.
        block_bytes: Bytes of one block.
        context_blocks: Blocks of one sequence of the longest context.
        machine_bytes: Memory of the machine; None asks the system.

    Raises:
        ModelFolderError: The pool cannot hold one sequence of the longest context.
    """
    if asked or memory_bytes:
        blocks = asked or memory_bytes // block_bytes
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if machine_bytes is None else machine_bytes
        share = min(DEFAULT_POOL_BYTES, int(memory * POOL_SHARE)) // block_bytes
        blocks = max(share, MIN_SEQUENCES * context_blocks + 1)
    if blocks < context_blocks + 1:
        raise ModelFolderError(
            f"The KV pool has {blocks} blocks; one sequence of the longest context needs {context_blocks + 1}. "
            "Give it more memory or lower max_context."
        )
    return blocks
