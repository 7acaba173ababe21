"""The bytes of the KV pool: anonymous shared memory that server and core both map.

The core computes in it (or, on an accelerator, mirrors the blocks of a hand-over in it); the server sends
from it and receives into it, so no block is copied between the two processes. Pages that are never touched
take no memory.
"""

import mmap
import os
import tempfile


class KVMemory:
    """A shared mapping.

    Args:
        descriptor: Of the shared memory; stays owned by the caller of `create_shared` or the parent process.
        size_bytes: Length of the mapping.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self._map = mmap.mmap(descriptor, size_bytes)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Drop the mapping and the descriptor; views into it must be gone."""
        self.view.release()
        self._map.close()
        os.close(self.descriptor)


def create_shared(name: str, size_bytes: int = 0) -> int:
    """A descriptor of anonymous shared memory, closed on exec unless passed on.

    Linux has `memfd_create`; elsewhere an unlinked temporary file does the same.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:
        descriptor, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    if size_bytes:
        os.ftruncate(descriptor, size_bytes)
    return descriptor
