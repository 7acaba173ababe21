"""Leases as the router holds them: kept alive while no decode instance has the ticket, released on every other end.

A decode instance that has the ticket renews the lease itself, so the router does so only while it looks for one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import aiohttp

from triptych_contract.instance import InstanceRecord
from triptych_router.cluster.view import base_url
from triptych_router.log import log

RENEWALS_A_TTL = 6
CALL_S = 2.0
RELEASE_TRIES = 2
MAX_CALLS = 4096
"""Calls under way; over it the engines' TTL does the rest."""


class Leases:
    """Calls `/instance/leases/{id}`; `close` waits for those that are under way."""

    def __init__(self, session: aiohttp.ClientSession, *, token: str) -> None:
        self._session = session
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._calls: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def kept(self, record: InstanceRecord, lease: str, ttl_ms: int, *, at_once: bool) -> Iterator[None]:
        """Renew the lease every sixth of its life for as long as the block runs; `at_once` also at its beginning."""
        loop, interval_s = asyncio.get_running_loop(), ttl_ms / 1000 / RENEWALS_A_TTL
        timer: asyncio.TimerHandle | None = None

        def renew() -> None:
            nonlocal timer
            self._start(self._renew(record, lease))
            timer = loop.call_later(interval_s, renew)

        timer = loop.call_later(0.0 if at_once else interval_s, renew)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def release(self, record: InstanceRecord, lease: str) -> None:
        """Release without waiting; it is idempotent at the engine, and bounded in time."""
        self._start(self._release(record, lease))

    async def close(self) -> None:
        """Wait for all calls; each has its deadline."""
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        if len(self._calls) >= MAX_CALLS:
            call.close()
            return
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _renew(self, record: InstanceRecord, lease: str) -> None:
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
