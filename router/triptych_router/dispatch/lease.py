"""Leases as the router holds them: kept alive while no decode instance has the ticket, released on every other end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import aiohttp

from triptych_contract.instance import InstanceRecord
from triptych_router.cluster.view import base_url
from triptych_router.log import log

RENEWALS_A_TTL = 6
CALL_S = 2.0
RELEASE_TRIES = 2
MAX_RELEASES = 4096
"""Releases under way; over it the engines' TTL does the rest."""


class Leases:
    """Calls `/instance/leases/{id}`; `close` waits for the releases that are under way."""

    def __init__(self, session: aiohttp.ClientSession, *, token: str) -> None:
        self._session = session
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._releases: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def kept(self, record: InstanceRecord, lease: str, ttl_ms: int) -> AsyncIterator[None]:
        """Renew the lease every sixth of its life for as long as the block runs."""
        renewing = asyncio.create_task(self._renew(record, lease, ttl_ms))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    def release(self, record: InstanceRecord, lease: str) -> None:
        """Release without waiting; it is idempotent at the engine, and bounded in time."""
        if len(self._releases) >= MAX_RELEASES:
            return
        task = asyncio.create_task(self._release(record, lease))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def close(self) -> None:
        """Wait for all releases; each has its deadline."""
        await asyncio.gather(*self._releases, return_exceptions=True)

    async def _renew(self, record: InstanceRecord, lease: str, ttl_ms: int) -> None:
        while True:
            await asyncio.sleep(ttl_ms / 1000 / RENEWALS_A_TTL)
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                await self._call("POST", record, lease)

    async def _release(self, record: InstanceRecord, lease: str) -> None:
        for _ in range(RELEASE_TRIES):
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                await self._call("DELETE", record, lease)
                return
        log(logging.INFO, "lease left to its life", instance=record.id)

    async def _call(self, method: str, record: InstanceRecord, lease: str) -> None:
        url = f"{base_url(record)}/instance/leases/{lease}"
        timeout = aiohttp.ClientTimeout(total=CALL_S)
        async with self._session.request(
            method, url, headers=self._headers, timeout=timeout, allow_redirects=False
        ) as answer:
            await answer.read()
