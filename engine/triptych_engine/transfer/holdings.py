"""What this instance holds for others: leases with their blocks and embeddings, and how each one ends.

A holding ends in one order only: whatever still reads it is stopped, then the lease leaves the table, then
the core is told, because the core may reuse the blocks the moment it reads that message.

Ids come from callers and serve once: an id is promised to one leg, granted, and spent by its end. A release that
overtakes its leg spends the id, so that the leg is refused, or its grant is taken back at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from triptych_contract.clock import Clock
from triptych_contract.errors import HandoverRefused, Overloaded
from triptych_engine.messages import Inbox, ReleaseLease
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.leases import EmbeddingHolding, KVHolding, Lease, LeaseTable
from triptych_engine.transfer.spent import SpentIds

StopReaders = Callable[[str], None]


class Holdings:
    """Leases and what they hold.

    Args:
        clock: Of the leases.
        ttl_ms: Life of a lease without renewal.
        store: Embeddings that leases pin.
        core_send: Tells the core that blocks are free.
    """

    def __init__(self, *, clock: Clock, ttl_ms: int, store: EmbeddingStore, core_send: Callable[[Inbox], None]) -> None:
        self._clock = clock
        self._table = LeaseTable(ttl_s=ttl_ms / 1000)
        self._store = store
        self._core_send = core_send
        self._stop_readers: StopReaders = lambda _lease: None
        self._promised: set[str] = set()
        self._spent = SpentIds()
        self.ttl_ms = ttl_ms

    def __len__(self) -> int:
        return len(self._table)

    def on_end(self, stop_readers: StopReaders) -> None:
        """Name what stops all readers of a lease; it must not return before none of them reads any more."""
        self._stop_readers = stop_readers

    @contextmanager
    def promised(self, lease_id: str) -> Iterator[None]:
        """Keep an id for the leg of this block; one that is not granted in it is spent.

        Raises:
            HandoverRefused: The id is in use, or has had its end.
        """
        if lease_id in self._promised or lease_id in self._table or self._is_spent(lease_id):
            raise HandoverRefused("This lease id is in use or was given back; choose a new one.")
        self._promised.add(lease_id)
        try:
            yield
        finally:
            self._promised.discard(lease_id)
            if lease_id not in self._table:
                self._spend(lease_id)

    def grant_kv(self, lease_id: str, holding: KVHolding) -> Lease:
        """Lease blocks that the core keeps.

        Raises:
            HandoverRefused: The lease was given back before; the core has been told to free the blocks.
            Overloaded: There are too many leases; the core has been told to free the blocks.
            ValueError: The id is in use.
        """
        if self._is_spent(lease_id):
            self._core_send(ReleaseLease(lease_id))
            raise _given_back()
        try:
            return self._table.grant(lease_id, holding, now_s=self._clock.now_s())
        except Overloaded:
            self._core_send(ReleaseLease(lease_id))
            raise

    def grant_embeddings(self, lease_id: str, digests: Sequence[bytes]) -> Lease:
        """Lease embeddings of the store.

        Raises:
            HandoverRefused: One of them is not in the store, or the lease was given back before.
            Overloaded: There are too many leases.
        """
        if self._is_spent(lease_id):
            raise _given_back()
        self._store.pin(digests)
        try:
            return self._table.grant(lease_id, EmbeddingHolding(tuple(digests)), now_s=self._clock.now_s())
        except Overloaded:
            self._store.unpin(digests)
            raise

    def find(self, lease_id: str) -> Lease:
        """The living lease of this id.

        Raises:
            HandoverRefused: It was never granted here, has ended, or its time is over.
        """
        lease = self._table.find(lease_id, now_s=self._clock.now_s())
        return _known(lease)

    def renew(self, lease_id: str) -> Lease:
        """Let a living lease start its life anew; raises as `find` does."""
        return _known(self._table.renew(lease_id, now_s=self._clock.now_s()))

    def release(self, lease_id: str) -> bool:
        """End a lease; False if there is none, and then there will be none of this id."""
        self._stop_readers(lease_id)
        self._spend(lease_id)
        lease = self._table.release(lease_id)
        if lease is None:
            return False
        self._free(lease)
        return True

    def expire(self) -> int:
        """End every lease whose time is over; how many there were."""
        over = self._table.expire(now_s=self._clock.now_s())
        for lease in over:
            self._stop_readers(lease.id)
            self._free(lease)
        return len(over)

    def release_all(self) -> None:
        """End every lease."""
        for lease_id in self._table.ids():
            self.release(lease_id)

    def next_expiry_in_s(self) -> float | None:
        """Seconds until the next lease is over; None without leases."""
        expiry_s = self._table.next_expiry_s()
        return None if expiry_s is None else max(0.0, expiry_s - self._clock.now_s())

    def _spend(self, lease_id: str) -> None:
        self._spent.add(lease_id, now_s=self._clock.now_s())

    def _is_spent(self, lease_id: str) -> bool:
        return self._spent.holds(lease_id, now_s=self._clock.now_s())

    def _free(self, lease: Lease) -> None:
        if isinstance(lease.holding, KVHolding):
            self._core_send(ReleaseLease(lease.id))
        else:
            self._store.unpin(lease.holding.digests)


def _known(lease: Lease | None) -> Lease:
    if lease is None:
        raise HandoverRefused("The lease is unknown here or over; run the prefill leg again.")
    return lease


def _given_back() -> HandoverRefused:
    return HandoverRefused("The lease was given back before it was granted.")
