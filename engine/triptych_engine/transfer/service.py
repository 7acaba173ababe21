"""The facade of the hand-over: all that the request handlers and the instance API see of it.

producer   core: LeaseGranted → grant → Ticket … renew … release | Taken | expiry → core: ReleaseLease
consumer   Ticket → check → (queued, renewing) → core: PullWanted → pull → core: PullEnded; Taken to the producer
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

from triptych_contract import WIRE_VERSION
from triptych_contract.clock import Clock
from triptych_contract.errors import HandoverRefused
from triptych_contract.handover import MAX_TTL_MS, EmbeddingTicket, LeaseRenewal, Ticket
from triptych_contract.ids import IdSource
from triptych_contract.instance import HandoverCounts
from triptych_contract.registry import Registry
from triptych_engine.messages import Inbox, LeaseGranted, PullEnded, PullWanted, Ready
from triptych_engine.transfer.counters import Counters, Failure
from triptych_engine.transfer.dial import TransferFailed
from triptych_engine.transfer.discovery import Directory, Peer
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.ends import Ends, make_ends
from triptych_engine.transfer.holdings import Holdings
from triptych_engine.transfer.leases import KVHolding
from triptych_engine.transfer.pace import transfer_deadline_s
from triptych_engine.transfer.tasks import Tasks

MAX_PULLS = 8
"""Pulls at a time; more would only share the same wire. The others wait their turn, renewing their leases."""
MAX_GIVE_BACKS = 256
GIVE_BACK_DEADLINE_S = 1.0
"""Blocks that nobody wants are free within a second, or by the TTL if their producer cannot be told."""
MAX_EMBEDDINGS = 64
"""Digests of one ticket."""


class Handover:
    """Hand-overs of one instance, both ends. Belongs to one event loop.

    Args:
        instance_id: Name of this instance.
        service_token: Secret of the service, not empty.
        link_host: Address that the KV link binds and that tickets name; the one of the own record.
        registry: Discovery; without it no ticket can be honoured.
        service: Name of the service.
        clock: Of leases and caches.
        new_id: Makes lease ids of embeddings.
        core_send: Tells the core which blocks are free.
        lease_ttl_ms: Life of a lease without renewal.
        unix_s: Wall clock, only for a member of the ticket that peers of other projects look at.
        on_pull_seconds: Told how long each pull took, whether it succeeded or not.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        service_token: str,
        link_host: str,
        registry: Registry | None,
        service: str,
        clock: Clock,
        new_id: IdSource,
        core_send: Callable[[Inbox], None],
        lease_ttl_ms: int,
        unix_s: Callable[[], float] = time.time,
        on_pull_seconds: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        if not service_token:
            raise ValueError("the KV link needs a service token")
        if not 0 < lease_ttl_ms <= MAX_TTL_MS:
            raise ValueError(f"a lease lives for 1 to {MAX_TTL_MS} ms")
        self._instance_id = instance_id
        self._service_token = service_token
        self._link_host = link_host
        self._clock = clock
        self._new_id = new_id
        self._unix_s = unix_s
        self._on_pull_seconds = on_pull_seconds
        self._counters = Counters()
        self._directory = Directory(registry, service=service, clock=clock)
        self.embeddings = EmbeddingStore()
        self._holdings = Holdings(clock=clock, ttl_ms=lease_ttl_ms, store=self.embeddings, core_send=core_send)
        self._granted = asyncio.Event()
        self._turns = asyncio.Semaphore(MAX_PULLS)
        self._expirer = Tasks(limit=1)
        self._give_backs = Tasks(limit=MAX_GIVE_BACKS)
        self._ends: Ends | None = None
        self._port = 0

    # --- life ------------------------------------------------------------------------------------------

    async def start(self, ready: Ready, pool: memoryview, kv_port: int = 0) -> int:
        """Listen on the KV port and take hand-overs.

        Args:
            ready: What the core said of itself.
            pool: The mapped pool.
            kv_port: Port; 0 lets the system choose.

        Returns:
            The port.

        Raises:
            OSError: The address cannot be bound.
        """
        ends = make_ends(
            instance_id=self._instance_id,
            service_token=self._service_token,
            clock=self._clock,
            ready=ready,
            pool=pool,
            holdings=self._holdings,
            store=self.embeddings,
            counters=self._counters,
        )
        self._port = ends.server.start(self._link_host, kv_port)
        self._holdings.on_end(ends.server.stop_readers)
        self._ends = ends
        self._expirer.start(self._expire_for_ever(), name="lease-expiry")
        return self._port

    async def stop(self) -> None:
        """End all links and leases; pulls of callers must have ended. A second call does nothing."""
        ends, self._ends = self._ends, None
        await self._expirer.close()
        if ends is None:
            return
        await ends.renewals.close()
        await self._give_backs.finish(GIVE_BACK_DEADLINE_S)
        await ends.server.stop()
        self._holdings.release_all()
        ends.dialler.close()
        ends.pool.close()

    @property
    def link_class(self) -> str:
        """Digest of the link class; empty before `start`."""
        return "" if self._ends is None else self._ends.link_class.digest()

    # --- producer --------------------------------------------------------------------------------------

    @property
    def leases(self) -> int:
        """Leases held for others."""
        return len(self._holdings)

    def promised(self, lease: str) -> AbstractContextManager[None]:
        """Keep a lease id for the leg that runs in this block.

        Raises:
            HandoverRefused: The id is in use, or was given back before its leg came.
        """
        return self._holdings.promised(lease)

    def grant(self, granted: LeaseGranted, request_id: str) -> Ticket:
        """Put the blocks of a computed prompt under their lease.

        Raises:
            HandoverRefused: The lease was given back meanwhile; the core frees the blocks.
            Overloaded: There are too many leases; the core frees the blocks.
        """
        ends = self._started()
        holding = KVHolding(granted.blocks, granted.identities, granted.num_tokens)
        self._holdings.grant_kv(granted.lease, holding)
        self._granted.set()
        return Ticket(
            remote_engine_id=self._instance_id,
            remote_request_id=request_id,
            remote_host=self._link_host,
            remote_port=self._port,
            remote_num_tokens=granted.num_tokens,
            remote_blocks_expiry_time=self._unix_s() + self._holdings.ttl_ms / 1000,
            lease=granted.lease,
            ttl_ms=self._holdings.ttl_ms,
            fingerprint=ends.link_class.digest(),
            remote_num_cached_tokens=granted.cached_tokens,
        )

    def grant_embeddings(self, digests: Sequence[bytes], lease_id: str = "") -> EmbeddingTicket:
        """Put embeddings of the store under a lease; without an id it gets a new one.

        Raises:
            HandoverRefused: One of them is not in the store, there are too many, or the lease was given back.
            Overloaded: There are too many leases.
        """
        self._started()
        if len(digests) > MAX_EMBEDDINGS:
            raise HandoverRefused(f"One hand-over carries at most {MAX_EMBEDDINGS} embeddings.")
        lease = self._holdings.grant_embeddings(lease_id or self._new_id(), digests)
        self._granted.set()
        return EmbeddingTicket(
            remote_engine_id=self._instance_id,
            remote_host=self._link_host,
            remote_port=self._port,
            lease=lease.id,
            ttl_ms=self._holdings.ttl_ms,
            digests=tuple(digest.hex() for digest in digests),
        )

    def renew(self, lease: str) -> LeaseRenewal:
        """Let a lease start its life anew.

        Raises:
            HandoverRefused: It is unknown here or over.
        """
        try:
            self._holdings.renew(lease)
        except HandoverRefused:
            self._counters.refused += 1
            raise
        return LeaseRenewal(lease, self._holdings.ttl_ms)

    def release(self, lease: str) -> bool:
        """End a lease and whatever still reads it; False if there is none, and then none of this id is granted."""
        return self._holdings.release(lease)

    def expire(self) -> int:
        """End every lease whose time is over, and say how many; also happens by itself."""
        return self._holdings.expire()

    # --- consumer --------------------------------------------------------------------------------------

    async def check(self, ticket: Ticket) -> None:
        """Accept a ticket: from now on its lease is renewed, until `pull`, `abandon` or `forget` ends that.

        Raises:
            HandoverRefused: Another link class or version, or an address that discovery does not list;
                nothing was dialled.
        """
        ends = self._started()
        peer = await self._peer(ticket)
        ends.renewals.start(peer, ticket.lease, ticket.ttl_ms)

    async def pull(self, ticket: Ticket, wanted: PullWanted, deadline_s: float | None = None) -> PullEnded:
        """Fetch the wanted blocks into the own pool and verify the copies; then the lease is given back.

        Cancelling is safe: once this has ended, however it ended, nothing writes to the blocks any more. A
        cancelled pull leaves it to the caller to `abandon` or `forget` the ticket.

        Args:
            ticket: From the router.
            wanted: From the core; with no blocks only the lease is given back.
            deadline_s: Seconds for all of it; by default from the lease's TTL and the bytes.

        Returns:
            What the core is told; a failure names its reason, and none of the blocks may be used.
        """
        ends = self._started()
        self._counters.requests += 1
        started_s = self._clock.now_s()
        try:
            await self._pull(ends, ticket, wanted, deadline_s)
        except TransferFailed as failure:
            self._counters.failed(failure.reason)
            self._give_back_later(ticket, useful=failure.reason is not Failure.REFUSED)
            return PullEnded(wanted.id, ok=False, reason=failure.reason.value)
        finally:
            ends.renewals.stop(ticket.lease)
            self._on_pull_seconds(self._clock.now_s() - started_s)
        self._give_back_later(ticket, useful=True)
        return PullEnded(wanted.id, ok=True, received=tuple(block.index for block in wanted.blocks))

    async def abandon(self, ticket: Ticket | EmbeddingTicket) -> None:
        """Want a ticket no more and give its lease back, within a second or not at all.

        After `stop` there is nothing left to be given back, and the caller's own end is not disturbed.
        """
        if self._ends is not None:
            self._ends.renewals.stop(ticket.lease)
            await self._give_back(self._ends, ticket)

    def forget(self, ticket: Ticket) -> None:
        """Want a ticket no more but leave its lease alive, for another instance that pulls under it."""
        if self._ends is not None:
            self._ends.renewals.stop(ticket.lease)

    async def pull_embeddings(
        self, ticket: EmbeddingTicket, digests: Sequence[bytes], deadline_s: float | None = None
    ) -> dict[bytes, bytes]:
        """Fetch embeddings by digest, verify them and keep them in the store; then the lease is given back.

        Args:
            ticket: From the router.
            digests: Those that are not here.
            deadline_s: Seconds for all of it; by default the lease's TTL.

        Returns:
            Raw rows by digest.

        Raises:
            HandoverRefused: The ticket cannot be honoured, or the transfer failed; embed the images here.
        """
        ends = self._started()
        peer = await self._find(ticket)
        limit_s = transfer_deadline_s(ticket.ttl_ms, 0) if deadline_s is None else deadline_s
        try:
            rows = await ends.client.pull_embeddings(peer, ticket.lease, digests, deadline_s=limit_s)
        except TransferFailed as failure:
            self._counters.failed(failure.reason)
            self._give_back_later(ticket, useful=failure.reason is not Failure.REFUSED)
            raise HandoverRefused(failure.message) from None
        self._give_back_later(ticket, useful=True)
        for digest, data in rows.items():
            self.embeddings.put(digest, data, count=len(data) // ends.embedding_bytes)
        return rows

    # --- counters --------------------------------------------------------------------------------------

    def counts(self) -> HandoverCounts:
        """Counters since start; those of the core (recomputed tokens, encoder runs) are zero here."""
        return self._counters.snapshot()

    def failures(self) -> Mapping[str, int]:
        """Discarded transfers by reason."""
        return self._counters.failures()

    # --- inside ----------------------------------------------------------------------------------------

    def _started(self) -> Ends:
        if self._ends is None:
            raise HandoverRefused("This instance takes no hand-overs yet, or no more.")
        return self._ends

    async def _pull(self, ends: Ends, ticket: Ticket, wanted: PullWanted, deadline_s: float | None) -> None:
        if not wanted.blocks:
            return
        if any(not ends.pool.holds(block.block, block.tokens) for block in wanted.blocks):
            raise ValueError("a wanted block lies outside of the pool")
        try:
            peer = await self._peer(ticket)
        except HandoverRefused as refusal:
            raise TransferFailed(Failure.REFUSED, refusal.message) from None
        ends.renewals.start(peer, ticket.lease, ticket.ttl_ms)
        size_bytes = sum(ends.pool.layout.valid_bytes(block.tokens) for block in wanted.blocks)
        limit_s = transfer_deadline_s(ticket.ttl_ms, size_bytes) if deadline_s is None else deadline_s
        try:
            async with asyncio.timeout(limit_s), self._turns:
                await ends.client.pull(peer, ticket.lease, wanted.blocks, deadline_s=limit_s)
        except TimeoutError:
            raise TransferFailed(Failure.LATE, "The transfer did not end in time.") from None

    async def _peer(self, ticket: Ticket) -> Peer:
        """The producer of a ticket that this instance can honour."""
        ours = self._started().link_class.digest()
        if ticket.version != WIRE_VERSION or ticket.tp_size != 1:
            self._refuse("The ticket is of another version or of a producer with several ranks.")
        if ticket.fingerprint != ours:
            self._refuse(
                "The producer's model, KV layout or KV type is another than this instance's"
                f" (link class {ticket.fingerprint[:32]} there, {ours} here)."
            )
        return await self._find(ticket)

    async def _find(self, ticket: Ticket | EmbeddingTicket) -> Peer:
        try:
            return await self._directory.find(ticket.remote_engine_id, ticket.remote_host, ticket.remote_port)
        except HandoverRefused:
            self._counters.refused += 1
            raise

    def _refuse(self, message: str) -> NoReturn:
        self._counters.refused += 1
        raise HandoverRefused(message)

    def _give_back_later(self, ticket: Ticket | EmbeddingTicket, *, useful: bool) -> None:
        """Give a lease back without waiting for it; not useful if its producer has refused it."""
        if useful:
            self._give_backs.start(self._give_back(self._started(), ticket), name="lease-give-back")

    async def _give_back(self, ends: Ends, ticket: Ticket | EmbeddingTicket) -> None:
        """Only a producer that discovery lists is told, and its TTL ends what it cannot be told of."""
        with contextlib.suppress(TransferFailed, HandoverRefused):
            peer = await self._directory.find(ticket.remote_engine_id, ticket.remote_host, ticket.remote_port)
            await ends.client.give_back(peer, ticket.lease, deadline_s=GIVE_BACK_DEADLINE_S)

    async def _expire_for_ever(self) -> None:
        """Wake at the next expiry; a renewal or a new lease only ever moves it away."""
        while True:
            wait_s = self._holdings.next_expiry_in_s()
            if wait_s is None:
                self._granted.clear()
                await self._granted.wait()
            else:
                await asyncio.sleep(max(0.001, wait_s))
                self._holdings.expire()
