"""Renewals of the leases whose tickets this instance holds, while it is queued or pulling."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Protocol

from triptych_contract.handover import MAX_TTL_MS
from triptych_engine.transfer.counters import Failure
from triptych_engine.transfer.dial import TransferFailed
from triptych_engine.transfer.discovery import Peer
from triptych_engine.transfer.pace import renewal_interval_s
from triptych_engine.transfer.tasks import Tasks

MAX_RENEWED = 4096
"""Tickets held at a time; those beyond live for one TTL."""

_log = logging.getLogger(__name__)


class Renewal(Protocol):
    """The call that renews."""

    def __call__(self, peer: Peer, lease: str, *, deadline_s: float) -> Awaitable[None]:
        """Renew a lease of a peer within so many seconds; raises `TransferFailed`."""
        ...


class Renewals:
    """One task for each held ticket.

    Args:
        renew: The call on the KV link.
    """

    def __init__(self, renew: Renewal) -> None:
        self._renew = renew
        self._tasks = Tasks(limit=MAX_RENEWED)
        self._by_lease: dict[str, asyncio.Task[None]] = {}

    def start(self, peer: Peer, lease: str, ttl_ms: int) -> None:
        """Renew from now on; a lease that is renewed already stays so."""
        if lease in self._by_lease:
            return
        task = self._tasks.start(self._keep(peer, lease, ttl_ms), name="lease-renewal")
        if task is not None:
            self._by_lease[lease] = task

    def stop(self, lease: str) -> None:
        """Renew no more; a lease that is not renewed stays so."""
        task = self._by_lease.pop(lease, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Renew nothing any more."""
        self._by_lease.clear()
        await self._tasks.close()

    async def _keep(self, peer: Peer, lease: str, ttl_ms: int) -> None:
        """Renew until stopped, refused, or the longest life of a request is over.

        A call that fails otherwise is repeated at the next interval: there are several before the lease ends.
        """
        interval_s = renewal_interval_s(ttl_ms)
        for _ in range(int(MAX_TTL_MS / 1000 / interval_s) + 1):
            await asyncio.sleep(interval_s)
            try:
                await self._renew(peer, lease, deadline_s=interval_s)
            except TransferFailed as failure:
                _log.info("a lease was not renewed: %s", failure.message)
                if failure.reason is Failure.REFUSED:
                    break
        if self._by_lease.get(lease) is asyncio.current_task():
            del self._by_lease[lease]
