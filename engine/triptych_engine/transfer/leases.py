"""The table of leases: who may still take which blocks or embeddings, and until when.

Pure: the time is an argument, nothing here reads a clock or sends a byte. All leases of a table have the same
life, so the order of their last renewal is the order in which they expire and a plain dict keeps it.
"""

from dataclasses import dataclass, replace

from triptych_contract.errors import Overloaded

MAX_LEASES = 4096
"""Bound of one table; the core admits far fewer, because leased blocks have a share of the pool."""


@dataclass(frozen=True, slots=True)
class KVHolding:
    """Blocks of one computed prompt.

    Attributes:
        blocks: Physical blocks in chain order, the partial tail last.
        identities: Hash of each full block; the tail has none.
        num_tokens: Prompt tokens that they hold.
    """

    blocks: tuple[int, ...]
    identities: tuple[bytes, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingHolding:
    """Embeddings by content digest; they stay pinned in the store."""

    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The promise to keep a holding until a time.

    Attributes:
        id: 128-bit id; whoever names it over an authenticated link may take the holding.
        holding: What is kept.
        expires_s: Time of the table's clock at which the promise ends.
    """

    id: str
    holding: KVHolding | EmbeddingHolding
    expires_s: float


class LeaseTable:
    """Leases of one instance.

    A lease ends exactly once: `release` or `expire` hands it back to the caller, who frees what it held.

    Args:
        ttl_s: Life of a lease without renewal.
        limit: Most leases at a time.
    """

    def __init__(self, *, ttl_s: float, limit: int = MAX_LEASES) -> None:
        if ttl_s <= 0:
            raise ValueError("a lease lives for more than no time")
        self._ttl_s = ttl_s
        self._limit = limit
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._leases

    def grant(self, lease_id: str, holding: KVHolding | EmbeddingHolding, *, now_s: float) -> Lease:
        """Start a lease.

        Raises:
            Overloaded: The table is full.
            ValueError: The id is in use.
        """
        if lease_id in self._leases:
            raise ValueError("this lease id is in use")
        if len(self._leases) >= self._limit:
            raise Overloaded("Too many hand-overs wait to be taken.", retry_after_ms=1000)
        lease = Lease(lease_id, holding, now_s + self._ttl_s)
        self._leases[lease_id] = lease
        return lease

    def find(self, lease_id: str, *, now_s: float) -> Lease | None:
        """The lease if it still lives."""
        lease = self._leases.get(lease_id)
        return lease if lease is not None and now_s < lease.expires_s else None

    def renew(self, lease_id: str, *, now_s: float) -> Lease | None:
        """Let a living lease start its life anew; None if it is unknown or over."""
        lease = self.find(lease_id, now_s=now_s)
        if lease is None:
            return None
        renewed = replace(lease, expires_s=now_s + self._ttl_s)
        del self._leases[lease_id]
        self._leases[lease_id] = renewed
        return renewed

    def release(self, lease_id: str) -> Lease | None:
        """End a lease, whether it is over or not; None if it has already ended."""
        return self._leases.pop(lease_id, None)

    def expire(self, *, now_s: float) -> tuple[Lease, ...]:
        """End every lease whose time is over and hand them back, oldest first."""
        over: list[Lease] = []
        for lease in self._leases.values():
            if now_s < lease.expires_s:
                break
            over.append(lease)
        for lease in over:
            del self._leases[lease.id]
        return tuple(over)

    def next_expiry_s(self) -> float | None:
        """When the next lease is over; None without leases."""
        first = next(iter(self._leases.values()), None)
        return None if first is None else first.expires_s

    def ids(self) -> tuple[str, ...]:
        """All lease ids, oldest renewal first."""
        return tuple(self._leases)
