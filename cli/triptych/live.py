"""The truth about a service, now: instances are asked themselves, and who does not answer is shown as such.

The operator's file only says which children there are to be; role, epoch, load and counters come from the instances,
within `ASK_S`.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from triptych_contract.instance import InstanceRecord, InstanceState
from triptych_contract.registry import LocalRegistry
from triptych_operator.instance_client import ASK_S, InstanceClient
from triptych_operator.plan.desired import ROUTER
from triptych_operator.state_dir import ChildEntry, ServiceEntry, StateDirectory


class Blocks(msgspec.Struct, frozen=True):
    """KV blocks of one instance."""

    free: int = 0
    cached: int = 0
    held: int = 0
    in_transfer: int = 0
    total: int = 0


class Handover(msgspec.Struct, frozen=True):
    """Counters since the instance's start that prove what was handed over."""

    blocks_sent: int = 0
    blocks_received: int = 0
    tokens_recomputed: int = 0


class InstanceView(msgspec.Struct, frozen=True):
    """One instance; `phase` is its own, or `starting`, `unreachable`, `dead` where it does not speak."""

    id: str
    role: str
    epoch: int
    phase: str
    address: str
    running: int = 0
    waiting: int = 0
    blocks: Blocks = Blocks()
    handover: Handover = Handover()


class RouterView(msgspec.Struct, frozen=True):
    """The router; `phase` is `serving`, `waiting`, `unreachable` or `dead`."""

    address: str
    phase: str
    ready: bool


class ServiceView(msgspec.Struct, frozen=True):
    """The service; `phase` is `ready`, `waiting` or `stopped`."""

    name: str
    phase: str
    model: str
    engine: str
    file: str
    pid: int


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """`triptych status -o json`."""

    service: ServiceView
    router: RouterView
    instances: tuple[InstanceView, ...]
    ignored_fields: tuple[str, ...] = ()
    waiting_for: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was heard: records in discovery, states by instance id, readiness of the router (None: no answer)."""

    records: Mapping[str, InstanceRecord]
    states: Mapping[str, InstanceState | None]
    router_ready: bool | None


async def ask(state: StateDirectory, url: str) -> Answers:
    """Ask everyone at the same time."""
    records = await LocalRegistry(state.instances).snapshot()
    timeout = aiohttp.ClientTimeout(total=ASK_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        client = InstanceClient(session, token=state.token() or "")
        states, ready = await asyncio.gather(client.states(records), _ready(client, url))
    return Answers({record.id: record for record in records}, states, ready)


async def _ready(client: InstanceClient, url: str) -> bool | None:
    return await client.ready(url) if url else None


def report(entry: ServiceEntry, answers: Answers, *, held: bool) -> Report:
    """Join what the operator wants with what was heard; what was heard wins."""
    children = {child.name: child for child in entry.children if child.name != ROUTER}
    instances = tuple(_instance(name, children.get(name), answers) for name in sorted({*children, *answers.records}))
    router = _router(entry, answers)
    serving = router.ready and all(instance.phase == "serving" for instance in instances)
    phase = ("ready" if serving and entry.status.ready else "waiting") if held else "stopped"
    return Report(
        service=ServiceView(entry.name, phase, entry.model, entry.engine, entry.file, entry.pid),
        router=router,
        instances=instances,
        ignored_fields=entry.status.ignored_fields,
        waiting_for=_waiting_for(entry, instances, router, held=held),
    )


def _waiting_for(entry: ServiceEntry, instances: tuple[InstanceView, ...], router: RouterView, *, held: bool) -> str:
    if not held:
        return "a new start: triptych up has ended"
    if entry.status.waiting_for:
        return entry.status.waiting_for
    lost = next((item for item in instances if item.phase != "serving"), None)
    if lost is not None:
        return f"{lost.id}, which is {lost.phase}"
    return "" if router.ready else f"the router, which is {router.phase}"


def _instance(name: str, child: ChildEntry | None, answers: Answers) -> InstanceView:
    record, state = answers.records.get(name), answers.states.get(name)
    address = f"{record.host}:{record.http_port}" if record else ""
    if state is None:
        alive = child is not None and _alive(child)
        phase = "dead" if not alive else "unreachable" if record else "starting"
        return InstanceView(name, "unassigned", 0, phase, address)
    load = state.load
    blocks, handover = load.blocks, load.handover
    return InstanceView(
        id=name,
        role=str(state.role),
        epoch=state.epoch,
        phase=str(state.phase),
        address=address,
        running=load.running,
        waiting=load.waiting,
        blocks=Blocks(blocks.free, blocks.cached, blocks.held, blocks.in_transfer, blocks.total),
        handover=Handover(handover.blocks_sent, handover.blocks_received, handover.tokens_recomputed),
    )


def _router(entry: ServiceEntry, answers: Answers) -> RouterView:
    child = next((child for child in entry.children if child.name == ROUTER), None)
    if answers.router_ready is not None:
        return RouterView(entry.url, "serving" if answers.router_ready else "waiting", answers.router_ready)
    alive = child is not None and _alive(child)
    return RouterView(entry.url, "unreachable" if alive else "dead", False)


def _alive(child: ChildEntry) -> bool:
    """True if the process that the operator last started is there; a dead one waiting to be reaped is not."""
    if child.pid is None or not child.alive:
        return False
    try:
        os.kill(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        with open(f"/proc/{child.pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    built: dict[str, Any] = msgspec.to_builtins(report)
    return built
