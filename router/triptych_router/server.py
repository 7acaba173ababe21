"""Build the router's parts, serve, drain."""

import asyncio
import contextlib
import gc
import logging
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from triptych_contract.clock import Clock, SystemClock
from triptych_contract.ids import IdSource, random_id
from triptych_contract.program.connection import GuardedRunner
from triptych_contract.program.stdin import when_stdin_ends
from triptych_contract.registry import LocalRegistry, Registry
from triptych_router.admission.gate import Gate
from triptych_router.admission.keys import ApiKeys
from triptych_router.api.completions import Completions
from triptych_router.api.handlers import Front
from triptych_router.cluster.watch import ClusterWatch
from triptych_router.dispatch.lease import Leases
from triptych_router.dispatch.services import Services
from triptych_router.log import LOGGER
from triptych_router.request_log import RequestLog
from triptych_router.settings import Settings
from triptych_router.telemetry import Labels, Telemetry

MAX_CONNECTIONS = 8192
KEEPALIVE_S = 10.0
"""Below every engine's own keep-alive, so that a connection is rarely closed under a request."""
SHUTDOWN_S = 1.0
HEADER_BYTES = 32768
COLLECT_AFTER = 10_000
"""Objects that appear before the youngest of them are searched for cycles."""


@dataclass(slots=True)
class Router:
    """A serving router.

    Attributes:
        front: Its endpoints, and `ready`.
        services: Its parts.
        port: Where it listens.
        runner: aiohttp's server.
        site: The listening socket.
    """

    front: Front
    services: Services
    port: int
    runner: web.AppRunner
    site: web.SockSite

    async def drain(self, timeout_s: float) -> None:
        """Close the listener, finish what is in flight, refuse the rest."""
        self.services.gate.draining = True
        await self.site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.services.gate.idle()
        self.services.gate.closed = True


@contextlib.asynccontextmanager
async def serving(
    settings: Settings,
    *,
    registry: Registry | None = None,
    clock: Clock | None = None,
    new_id: IdSource = random_id,
    new_seed: Callable[[], int] | None = None,
) -> AsyncIterator[Router]:
    """A router that listens for as long as the block runs.

    Raises:
        OSError: The address cannot be bound, or discovery cannot be opened.
    """
    clock = clock or SystemClock()
    source = random.SystemRandom()
    async with contextlib.AsyncExitStack() as stack:
        engines = await stack.enter_async_context(_session())
        control = await stack.enter_async_context(_session())
        registry = registry or LocalRegistry(settings.discovery)
        lines = _request_log(settings)
        if lines is not None:
            stack.callback(lines.close)
        services = _services(settings, clock, registry, engines=engines, control=control, new_id=new_id, lines=lines)
        stack.push_async_callback(services.leases.close)
        watching = asyncio.create_task(services.watch.run())
        stack.push_async_callback(_cancel, watching)
        keys = ApiKeys(settings.api_keys, clock) if settings.api_keys is not None else None
        completions = Completions(
            services,
            model=settings.model,
            request_timeout_s=settings.request_timeout_s,
            slow_client_s=settings.slow_client_s,
            new_seed=new_seed or (lambda: source.getrandbits(63)),
        )
        front = Front(services, completions, keys=keys, model=settings.model)
        runner = GuardedRunner(
            front.app(),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=SHUTDOWN_S,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        bound = _bind(settings.host, settings.port)
        site = web.SockSite(runner, bound, backlog=1024)
        await site.start()
        yield Router(front, services, bound.getsockname()[1], runner, site)


async def run(settings: Settings, announce: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; the end of stdin ends it at once if so wished."""
    loop = asyncio.get_running_loop()
    drain, leave = asyncio.Event(), asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, drain.set)

    def end_at_once() -> None:
        leave.set()
        drain.set()

    if settings.exit_with_stdin:
        when_stdin_ends(loop, end_at_once)
    async with serving(settings) as router:
        _calm_collector()
        announce(router.port)
        await drain.wait()
        draining = asyncio.create_task(router.drain(0.0 if leave.is_set() else settings.drain_s))
        leaving = asyncio.create_task(leave.wait())
        await asyncio.wait({draining, leaving}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(_cancel(draining), _cancel(leaving))


def _calm_collector() -> None:
    """Leave what was made at start out of every collection, and collect less often: a request makes few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _services(
    settings: Settings,
    clock: Clock,
    registry: Registry,
    *,
    engines: aiohttp.ClientSession,
    control: aiohttp.ClientSession,
    new_id: IdSource,
    lines: RequestLog | None,
) -> Services:
    watch = ClusterWatch(
        registry,
        control,
        clock=clock,
        service=settings.service,
        token=settings.service_token,
        model=settings.model,
    )
    gate = Gate(max_queue=settings.max_queue, max_of_tenant=settings.max_requests_per_key)
    return Services(
        new_id=new_id,
        session=engines,
        watch=watch,
        leases=Leases(control, token=settings.service_token),
        gate=gate,
        telemetry=Telemetry(lambda: _gauges(watch, gate, settings.model), lines),
        clock=clock,
        policy=settings.policy,
        token=settings.service_token,
        max_attempts=settings.retries + 1,
        queue_timeout_s=settings.queue_timeout_s,
        handover_min_tokens=settings.handover_min_tokens,
        expose_route=settings.expose_route,
    )


def _request_log(settings: Settings) -> RequestLog | None:
    return RequestLog() if settings.log_requests and LOGGER.isEnabledFor(logging.INFO) else None


def _gauges(watch: ClusterWatch, gate: Gate, model: str) -> dict[str, dict[Labels, float]]:
    instances: dict[Labels, float] = {}
    for instance in watch.view().instances:
        labels = (instance.state.role.value, instance.health.value)
        instances[labels] = instances.get(labels, 0) + 1
    return {
        "requests_in_flight": {(model,): gate.in_flight},
        "queue_depth": {(model,): gate.waiting},
        "instances": instances,
        "tasks": {(): len(asyncio.all_tasks())},
    }


def _session() -> aiohttp.ClientSession:
    """A pool of connections of its own; nothing of a client's (cookies, proxies, redirects) passes."""
    connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_S)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
