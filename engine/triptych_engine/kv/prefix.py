"""The prefix cache: which block holds the KV of which chain hash, and which of them may be given up.

A block enters when it is full and computed (or received and verified), and stays until it is evicted; while
it is here it is never written again. Blocks that nobody references are *idle*; they are evicted least recently
used first, but a parent only after its idle children, since a chain without its head cannot be matched.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

EVENT_DIGITS = 16
"""Hex digits of a hash in events: enough for the router, which only guesses by them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A reusable block: where it is, its hash, and the hash of the block before it."""

    block: int
    identity: bytes
    parent: bytes


@dataclass(slots=True)
class Events:
    """Changes since they were last taken: hashes that became reusable and that stopped being so."""

    stored: list[bytes] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)


class PrefixCache:
    """Hash → block, with a forest of idle blocks ordered for eviction."""

    def __init__(self) -> None:
        self._by_hash: dict[bytes, Entry] = {}
        self._by_block: dict[int, Entry] = {}
        self._idle: dict[int, int] = {}  # block -> tick of its last use
        self._idle_children: dict[bytes, int] = {}
        self._leaves: list[tuple[int, int]] = []  # heap of (tick, block), with stale pairs among them
        self._tick = 0
        self._events = Events()

    def __contains__(self, block: int) -> bool:
        return block in self._by_block

    def __len__(self) -> int:
        return len(self._by_hash)

    @property
    def num_idle(self) -> int:
        """Blocks that may be evicted."""
        return len(self._idle)

    def is_idle(self, block: int) -> bool:
        """True if the block is here and nobody references it."""
        return block in self._idle

    def match(self, hashes: Sequence[bytes], *, root: bytes) -> list[int]:
        """Blocks of the longest chain that starts at the root; valid until the next call that evicts."""
        blocks: list[int] = []
        parent = root
        for identity in hashes:
            entry = self._by_hash.get(identity)
            if entry is None or entry.parent != parent:
                break
            blocks.append(entry.block)
            parent = identity
        return blocks

    def insert(self, block: int, identity: bytes, *, parent: bytes) -> bool:
        """Make a referenced block reusable.

        Returns:
            False if another block has this hash already; this one then stays private.
        """
        if identity in self._by_hash or block in self._by_block:
            return False
        entry = Entry(block=block, identity=identity, parent=parent)
        self._by_hash[identity] = entry
        self._by_block[block] = entry
        self._events.stored.append(identity)
        return True

    def rest(self, block: int) -> None:
        """Nobody references the block any more."""
        entry = self._by_block[block]
        self._tick += 1
        self._idle[block] = self._tick
        self._idle_children[entry.parent] = self._idle_children.get(entry.parent, 0) + 1
        self._offer(entry)

    def wake(self, block: int) -> None:
        """An idle block is referenced again."""
        del self._idle[block]
        self._orphan(self._by_block[block])

    def evict(self) -> int:
        """Give up the least recently used idle block without idle children, and return it.

        Raises:
            LookupError: No block is idle.
        """
        while self._leaves:
            tick, block = heapq.heappop(self._leaves)
            if self._idle.get(block) == tick and not self._idle_children.get(self._by_block[block].identity):
                break
        else:
            raise LookupError("no block is idle")
        entry = self._by_block.pop(block)
        del self._by_hash[entry.identity]
        del self._idle[block]
        self._events.removed.append(entry.identity)
        self._orphan(entry)
        return block

    def take_events(self) -> Events:
        """Changes since the last call, in the order in which they came about within each list."""
        events, self._events = self._events, Events()
        return events

    def entries(self) -> list[Entry]:
        """All entries, for the audit."""
        return list(self._by_hash.values())

    def _orphan(self, entry: Entry) -> None:
        """An idle child of `entry.parent` is idle no more; without others the parent may be evicted."""
        left = self._idle_children[entry.parent] - 1
        if left:
            self._idle_children[entry.parent] = left
            return
        del self._idle_children[entry.parent]
        parent = self._by_hash.get(entry.parent)
        if parent is not None and parent.block in self._idle:
            self._offer(parent)

    def _offer(self, entry: Entry) -> None:
        """Put an idle block on the heap if it has no idle children; drop stale pairs when they prevail."""
        if self._idle_children.get(entry.identity):
            return
        heapq.heappush(self._leaves, (self._idle[entry.block], entry.block))
        if len(self._leaves) > 64 + 2 * len(self._idle):
            self._leaves = [(tick, block) for tick, block in set(self._leaves) if self._idle.get(block) == tick]
            heapq.heapify(self._leaves)
