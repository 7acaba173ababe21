"""Bounds on requests: how many at a time, how many of one tenant, how many waiting for an instance."""

import asyncio
import contextlib
from collections.abc import Iterator

from triptych_contract.errors import Overloaded, RateLimited

MAX_IN_FLIGHT = 8192
"""Each request holds two connections; over this the router itself would be the bottleneck."""
RETRY_MS = 1000


class Gate:
    """Counters with a bound each; every count goes back when its block ends.

    While it is `draining` connections are closed after their answer; once it is `closed` nobody is admitted.

    Args:
        max_queue: Requests that may wait for an instance.
        max_of_tenant: Requests of one API key at a time, 0 for no bound.
        max_in_flight: Requests of all tenants at a time.
    """

    def __init__(self, *, max_queue: int, max_of_tenant: int = 0, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self._max_queue = max_queue
        self._max_of_tenant = max_of_tenant
        self._max_in_flight = max_in_flight
        self._tenants: dict[str, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        self.waiting = 0
        self.draining = False
        self.closed = False

    @contextlib.contextmanager
    def admitted(self, tenant: str) -> Iterator[None]:
        """Count a request in.

        Raises:
            RateLimited: The tenant has as many as it may.
            Overloaded: The router has as many as it may, or is draining.
        """
        if self.closed:
            raise Overloaded("This router is shutting down; try again.", retry_after_ms=RETRY_MS)
        if self.in_flight >= self._max_in_flight:
            raise Overloaded("Too many requests are in flight; try again.", retry_after_ms=RETRY_MS)
        held = self._tenants.get(tenant, 0)
        if self._max_of_tenant and held >= self._max_of_tenant:
            raise RateLimited("This key has too many requests in flight; try again.", retry_after_ms=RETRY_MS)
        self._tenants[tenant] = held + 1
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._leave(tenant)

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """Count a request as waiting for an instance.

        Raises:
            Overloaded: The queue is full.
        """
        if self.waiting >= self._max_queue:
            raise Overloaded("The queue is full; try again.", retry_after_ms=RETRY_MS)
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def _leave(self, tenant: str) -> None:
        self.in_flight -= 1
        held = self._tenants.pop(tenant) - 1
        if held:
            self._tenants[tenant] = held
        if not self.in_flight:
            self._idle.set()
