"""Status from the world, built anew each time and never read back.

Conditions have a reason and a message that names the object; `waiting_for` is the one sentence for a person.
"""

import signal
from collections.abc import Iterable

import msgspec

from triptych_contract.roles import Phase, Role
from triptych_operator.plan.desired import ROUTER, DesiredChild, Sizes
from triptych_operator.snapshot import ObservedChild, Snapshot


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """One condition; `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str = ""


class RoleCount(msgspec.Struct, frozen=True, rename="camel"):
    """Instances of one role."""

    desired: int = 0
    ready: int = 0
    draining: int = 0


class Owners(msgspec.Struct, frozen=True, rename="camel"):
    """Which part of the spec, in words, decides."""

    replicas: str
    roles: str


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    """`.status` of a service.

    Attributes:
        url: Base URL of the OpenAI API, empty until the router listens.
        replicas: Instances that can prefill or decode and are alive.
        ready_replicas: Those of them that serve in their wanted role.
        roles: Counts by role.
        ratio: Encode/prefill/decode, mixed counting for the last two.
        owners: Who decides on replicas and on roles.
        conditions: Ready, Progressing, ModelAvailable, EnginesReady, RouterReady.
        ignored_fields: Fields of the file that are not acted on yet.
        waiting_for: What is missing, in one sentence; empty when ready.
        most_crashes: Ends in a row of the child that fares worst.
    """

    url: str
    replicas: int
    ready_replicas: int
    roles: dict[str, RoleCount]
    ratio: str
    owners: Owners
    conditions: tuple[Condition, ...]
    ignored_fields: tuple[str, ...] = ()
    waiting_for: str = ""
    most_crashes: int = 0

    @property
    def ready(self) -> bool:
        """True if the service answers with everything it is to have."""
        return any(condition.type == "Ready" and condition.status == "True" for condition in self.conditions)


def status_of(snapshot: Snapshot, desired: tuple[DesiredChild, ...], sizes: Sizes) -> ServiceStatus:
    """The status of this moment."""
    instances = [child for child in desired if child.role is not None]
    ready = [child for child in instances if _serves(child, snapshot)]
    engines = {child.name for child in instances if child.role != Role.ENCODE}
    waiting_for = _waiting_for(snapshot, desired)
    roles = _roles(snapshot, instances, ready)
    return ServiceStatus(
        url=snapshot.url,
        replicas=sum(1 for child in snapshot.children if child.name in engines and child.alive),
        ready_replicas=sum(1 for child in ready if child.name in engines),
        roles=roles,
        ratio=f"{sizes.encode}/{sizes.prefill + sizes.mixed}/{sizes.decode + sizes.mixed}",
        owners=Owners(sizes.replicas_owner, sizes.roles_owner),
        conditions=_conditions(snapshot, len(ready) == len(instances), waiting_for),
        ignored_fields=snapshot.service.ignored_fields,
        waiting_for=waiting_for,
        most_crashes=max((child.crashes for child in snapshot.children if not child.stopping), default=0),
    )


def ending(status: ServiceStatus) -> ServiceStatus:
    """The status of a service that was told to stop and lets its requests finish."""
    waiting_for = "its running requests to end; then it stops"
    ready = Condition("Ready", "False", "Draining", waiting_for)
    others = tuple(condition for condition in status.conditions if condition.type != "Ready")
    return msgspec.structs.replace(status, conditions=(ready, *others), waiting_for=waiting_for)


def _serves(child: DesiredChild, snapshot: Snapshot) -> bool:
    state = snapshot.state(child.name)
    return state is not None and state.phase == Phase.SERVING and state.role == child.role


def _roles(
    snapshot: Snapshot, instances: Iterable[DesiredChild], ready: Iterable[DesiredChild]
) -> dict[str, RoleCount]:
    wanted, serving = [child.role for child in instances], [child.role for child in ready]
    draining = [item.state.role for item in snapshot.instances if item.state and item.state.phase == Phase.DRAINING]
    shown = (Role.ENCODE, Role.PREFILL, Role.DECODE, Role.MIXED)
    return {
        str(role): RoleCount(wanted.count(role), serving.count(role), draining.count(role))
        for role in shown
        if role in wanted or role in draining
    }


def _waiting_for(snapshot: Snapshot, desired: tuple[DesiredChild, ...]) -> str:
    """The first thing that is missing, instances before the router."""
    if snapshot.service.spec.suspend:
        return "the service is suspended: nothing is started, stopped or given a role"
    for child in desired:
        if child.name != ROUTER and not _serves(child, snapshot):
            return _missing(child, snapshot)
    if snapshot.router_ready:
        return ""
    router = snapshot.child(ROUTER)
    return _ended(router) if router and not router.alive else "the router to have a view and a route"


def _missing(child: DesiredChild, snapshot: Snapshot) -> str:
    observed, state = snapshot.child(child.name), snapshot.state(child.name)
    if observed is None:
        return f"{child.name} to be started"
    if not observed.alive:
        return _ended(observed)
    if state is None:
        return _silent(observed)
    if state.phase == Phase.LOADING:
        return f"{child.name}: loading weights {state.loading_percent} %"
    if state.phase == Phase.SERVING:
        return f"{child.name} to take the role {child.role}"
    return f"{child.name}: {state.message or state.phase}"


def _silent(child: ObservedChild) -> str:
    """A living child that does not answer: it is on its way up, once more, or it hangs."""
    if child.silent_since_s is not None:
        return f"{child.name}, which does not answer; it is replaced if that lasts"
    return _ended(child) if child.crashes and not child.listened else f"{child.name} to answer"


def _ended(child: ObservedChild) -> str:
    if child.starts == 0:
        return f"{child.name} to be started"
    times = "once" if child.crashes <= 1 else f"{child.crashes} times in a row"
    if child.given_up:
        return f"{child.name}, which failed {times}: {child.given_up.rstrip('.')}"
    words = f": {child.last_words}" if child.last_words else ""
    return f"{child.name}, which ended {times} ({_how(child.exit_code)}){words}"


def _how(exit_code: int | None) -> str:
    """How a process ended, in words: a negative code is a signal's number."""
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return (
        f"killed by {name}; the machine may be out of memory" if -exit_code == signal.SIGKILL else f"killed by {name}"
    )


def _conditions(snapshot: Snapshot, engines_ready: bool, waiting_for: str) -> tuple[Condition, ...]:
    ready = engines_ready and snapshot.router_ready
    loading = [
        item for item in snapshot.instances if item.state is None or item.state.phase in (Phase.LOADING, Phase.FAILED)
    ]
    answered = bool(snapshot.instances)
    return (
        _condition("Ready", ready, "Serving", "Waiting", waiting_for),
        _condition("Progressing", not ready and not snapshot.service.spec.suspend, "Waiting", "Settled", waiting_for),
        Condition("ModelAvailable", "Unknown", "NotAsked")
        if not answered
        else _condition("ModelAvailable", not loading, "Loaded", "Loading", waiting_for),
        _condition("EnginesReady", engines_ready, "AllServe", "Waiting", waiting_for),
        _condition("RouterReady", snapshot.router_ready, "HasRoute", "Waiting", waiting_for),
    )


def _condition(kind: str, true: bool, reason: str, otherwise: str, message: str) -> Condition:
    return Condition(kind, "True" if true else "False", reason if true else otherwise, message)
