"""Embeddings by content digest: what was embedded here or pulled from elsewhere, up to a byte cap.

The digest covers the image's bytes, its size and mode, and the tenant's salt, so an entry never crosses
tenants. Entries under a lease are pinned; the others leave in least recently used order.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from triptych_contract.errors import HandoverRefused

CAPACITY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredEmbedding:
    """Embeddings of one image: `count` rows of raw bytes in the executor's element type."""

    digest: bytes
    count: int
    data: bytes


class EmbeddingStore:
    """A cache with pins.

    Args:
        capacity_bytes: Most bytes of all entries.
    """

    def __init__(self, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: dict[bytes, StoredEmbedding] = {}
        self._pins: Counter[bytes] = Counter()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries."""
        return self._size_bytes

    def get(self, digest: bytes) -> StoredEmbedding | None:
        """The entry, which becomes the most recently used one."""
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._entries[digest] = entry
        return entry

    def put(self, digest: bytes, data: bytes, *, count: int) -> bool:
        """Keep an entry, in place of none or of its equal.

        Returns:
            False if it does not fit beside what is pinned; nothing is dropped then.
        """
        if digest in self._entries:
            self.get(digest)
            return True
        if not self._make_room(len(data)):
            return False
        self._entries[digest] = StoredEmbedding(digest, count, data)
        self._size_bytes += len(data)
        return True

    def pin(self, digests: Sequence[bytes]) -> None:
        """Keep entries until they are unpinned as often.

        Raises:
            HandoverRefused: One of them is not here; none is pinned then.
        """
        if any(digest not in self._entries for digest in digests):
            raise HandoverRefused("An embedding of this hand-over is no longer kept; encode the image again.")
        self._pins.update(digests)

    def unpin(self, digests: Iterable[bytes]) -> None:
        """Undo one `pin` of each."""
        self._pins.subtract(digests)
        self._pins = +self._pins

    def _make_room(self, wanted_bytes: int) -> bool:
        """Drop the least recently used unpinned entries until so many bytes fit, or none if they cannot."""
        excess_bytes = self._size_bytes + wanted_bytes - self._capacity_bytes
        victims: list[bytes] = []
        for digest, entry in self._entries.items():
            if excess_bytes <= 0:
                break
            if digest not in self._pins:
                victims.append(digest)
                excess_bytes -= len(entry.data)
        if excess_bytes > 0:
            return False
        for digest in victims:
            self._size_bytes -= len(self._entries.pop(digest).data)
        return True
