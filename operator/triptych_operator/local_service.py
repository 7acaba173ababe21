"""One service on this machine: observe → Snapshot → reconcile → apply, until it is told to stop.

The loop wakes when a child begins to listen or ends, and at the latest after what reconcile asked for. It is the only
writer of the service's children and roles; a lock on the state directory makes sure of that.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import msgspec

from triptych_contract.clock import Clock, SystemClock
from triptych_contract.registry import LocalRegistry
from triptych_contract.roles import Assignment, Role
from triptych_operator.diff import Action, AssignRole, StartChild, StopChild
from triptych_operator.instance_client import InstanceClient, InstanceRefused
from triptych_operator.plan.desired import ROUTER
from triptych_operator.platforms.commands import Commands
from triptych_operator.platforms.local import LocalPlatform
from triptych_operator.reconcile import Outcome, reconcile
from triptych_operator.snapshot import ObservedChild, ObservedInstance, Snapshot
from triptych_operator.spec.types import LLMService
from triptych_operator.state_dir import ChildEntry, ServiceEntry, StateDirectory
from triptych_operator.status import ServiceStatus, ending

_log = logging.getLogger("triptych.operator")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How one service runs here.

    Attributes:
        service: What is wanted.
        state: Its directory.
        commands: argv of the children.
        port: The router's; 0 takes a free one.
        source: The file, for `status`.
        engine: `torch` or `sim`, for `status`.
    """

    service: LLMService
    state: StateDirectory
    commands: Commands
    port: int
    source: str
    engine: str


class LocalService:
    """Runs a service; hold the state directory's lock around it.

    Args:
        settings: What to run.
        clock: The operator's clock.
        on_status: Told each status that differs from the one before.
    """

    def __init__(
        self,
        settings: LocalSettings,
        *,
        clock: Clock | None = None,
        on_status: Callable[[ServiceStatus], None] = lambda status: None,
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._on_status = on_status
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._at_once = False
        self._registry = LocalRegistry(settings.state.instances)
        self._platform = LocalPlatform(
            commands=settings.commands,
            logs=settings.state.logs,
            port=settings.port,
            clock=self._clock,
            wake=self._wake.set,
        )
        self._written: ServiceEntry | None = None
        self._told: ServiceStatus | None = None
        self._unwritable: int | None = None

    def stop(self) -> None:
        """Drain and end; a second call ends at once."""
        self._at_once = self._stopping.is_set()
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Run until `stop`; all children have ended when it returns."""
        token = self._settings.state.mint_token()
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            client = InstanceClient(session, token=token)
            try:
                while not self._stopping.is_set():
                    await self._turn(client)
            finally:
                await self._close()

    async def _turn(self, client: InstanceClient) -> None:
        self._wake.clear()
        snapshot = await self._observe(client)
        outcome = reconcile(snapshot, self._clock.now_s())
        self._publish(outcome, snapshot.children)
        for action, reason in zip(outcome.actions, outcome.reasons, strict=True):
            if self._stopping.is_set():
                return
            _log.info("%s", reason)
            await self._apply(action, client)
        self._publish(outcome, self._platform.observe())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), outcome.requeue_s)

    async def _observe(self, client: InstanceClient) -> Snapshot:
        url = f"http://127.0.0.1:{self._platform.router_port}" if self._platform.http_port(ROUTER) else ""
        listening = tuple(
            record
            for record in await self._registry.snapshot()
            if self._platform.http_port(record.id) == record.http_port
        )
        states, router_ready = await asyncio.gather(client.states(listening), _ready(client, url))
        for name, state in states.items():
            self._platform.heard(name, answered=state is not None)
        if url:
            self._platform.heard(ROUTER, answered=router_ready is not None)
        return Snapshot(
            service=self._settings.service,
            children=self._platform.observe(),
            instances=tuple(ObservedInstance(name, state) for name, state in states.items()),
            router_ready=bool(router_ready),
            url=url,
        )

    async def _apply(self, action: Action, client: InstanceClient) -> None:
        match action:
            case StartChild(name, component):
                try:
                    await self._platform.start(name, component)
                except OSError as error:  # its log cannot be opened; the next observation tries again
                    _log.warning("%s cannot be started: %s", name, error.strerror)
            case StopChild(name, at_once, because):
                await self._platform.stop(name, at_once=at_once, because=because)
            case AssignRole(name, role, epoch):
                await self._assign(name, Assignment(Role(role), epoch), client)

    async def _assign(self, name: str, wanted: Assignment, client: InstanceClient) -> None:
        """Give a role; a failure is seen again by the next observation."""
        record = next((record for record in await self._registry.snapshot() if record.id == name), None)
        if record is None:
            return
        try:
            await client.assign(record, wanted)
        except InstanceRefused as refused:
            _log.warning("%s refuses the role %s: %s", name, wanted.role, refused)
        except (aiohttp.ClientError, TimeoutError, OSError):
            _log.warning("%s does not answer to its role", name)
        else:
            self._platform.assigned(name, wanted)
            self._wake.set()

    def _publish(self, outcome: Outcome, children: tuple[ObservedChild, ...]) -> None:
        settings = self._settings
        entry = ServiceEntry(
            name=settings.service.name,
            pid=os.getpid(),
            file=settings.source,
            url=outcome.status.url or (f"http://127.0.0.1:{settings.port}" if settings.port else ""),
            engine=settings.engine,
            model=settings.service.served_name,
            status=outcome.status,
            children=tuple(
                ChildEntry(child.name, str(child.component), child.pid, child.alive, child.starts) for child in children
            ),
        )
        if outcome.status != self._told:
            self._told = outcome.status
            self._on_status(outcome.status)
        if entry != self._written:
            try:
                settings.state.write_entry(entry)
                self._written, self._unwritable = entry, None
            except OSError as error:
                if error.errno != self._unwritable:  # a full disk is told once, not twice a second
                    _log.warning("the status cannot be written: %s", error.strerror)
                self._unwritable = error.errno

    def _publish_end(self) -> None:
        """Tell `status` that what is missing from now on is missing on purpose."""
        if self._written is None:
            return
        entry = msgspec.structs.replace(self._written, status=ending(self._written.status))
        with contextlib.suppress(OSError):
            self._settings.state.write_entry(entry)

    async def _close(self) -> None:
        """End the children; a second `stop` meanwhile ends them at once."""
        self._publish_end()
        closing = asyncio.create_task(self._platform.close(at_once=self._at_once))
        while not closing.done():
            self._wake.clear()
            waker = asyncio.create_task(self._wake.wait())
            await asyncio.wait({closing, waker}, return_when=asyncio.FIRST_COMPLETED)
            waker.cancel()
            if self._at_once and not closing.done():
                for child in self._platform.observe():
                    await self._platform.stop(child.name, at_once=True)
        await closing


async def _ready(client: InstanceClient, url: str) -> bool | None:
    return await client.ready(url) if url else None
