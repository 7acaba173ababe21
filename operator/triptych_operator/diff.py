"""Desired × observed → actions, each with its reason. Pure: applying none, some or all of them is safe.

An action is derived from what is seen, never from what was done before, so a crash between two actions costs
nothing but the next observation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from triptych_contract.instance import InstanceState
from triptych_contract.roles import Phase
from triptych_operator.backoff import delay_s
from triptych_operator.plan.desired import DesiredChild
from triptych_operator.snapshot import Component, ObservedChild, Snapshot

SILENT_S = 60.0
"""A living process that does not answer for so long is replaced; loading weights answers all the while."""

MUTE_S = 180.0
"""A process that never began to listen is replaced after so long: a cold start of PyTorch on a busy laptop fits in."""


@dataclass(frozen=True, slots=True)
class StartChild:
    """Start a process under a name."""

    name: str
    component: Component
    because: str


@dataclass(frozen=True, slots=True)
class StopChild:
    """End a process: by draining, or at once where it is beyond answering."""

    name: str
    at_once: bool
    because: str


@dataclass(frozen=True, slots=True)
class AssignRole:
    """Give an instance a role under an epoch that is higher than any it was seen with."""

    name: str
    role: str
    epoch: int
    because: str


Action = StartChild | StopChild | AssignRole


@dataclass(frozen=True, slots=True)
class Difference:
    """Actions for now, and the seconds until a postponed one is due (None: nothing is postponed)."""

    actions: tuple[Action, ...]
    due_in_s: float | None = None


def diff(desired: Iterable[DesiredChild], snapshot: Snapshot, now_s: float) -> Difference:
    """What to do so that the world comes nearer to what is desired."""
    wanted = {child.name: child for child in desired}
    actions: list[Action] = list(_surplus(wanted, snapshot))
    waits: list[float] = []
    for child in wanted.values():
        observed = snapshot.child(child.name)
        if observed is None or not observed.alive:
            wait_s = _wait_s(observed, now_s)
            if wait_s > 0:
                waits.append(wait_s)
            else:
                actions.append(StartChild(child.name, child.component, _start_reason(child, observed)))
        elif not observed.stopping:
            actions.extend(_mend(child, observed, snapshot, now_s))
    return Difference(tuple(actions), min(waits, default=None))


def _surplus(wanted: dict[str, DesiredChild], snapshot: Snapshot) -> Iterator[Action]:
    for child in snapshot.children:
        if child.name not in wanted and child.alive and not child.stopping:
            yield StopChild(child.name, False, "the spec no longer asks for it")


def _wait_s(observed: ObservedChild | None, now_s: float) -> float:
    if observed is None:
        return 0.0
    return observed.ended_s + delay_s(observed.crashes) - now_s


def _start_reason(child: DesiredChild, observed: ObservedChild | None) -> str:
    if observed is None or observed.starts == 0:
        return child.because
    if observed.given_up:
        return f"it was ended: {observed.given_up}"
    code = observed.exit_code
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"it ended with {how}"


def _mend(child: DesiredChild, observed: ObservedChild, snapshot: Snapshot, now_s: float) -> Iterator[Action]:
    state = snapshot.state(child.name)
    if observed.silent_since_s is not None and now_s - observed.silent_since_s >= SILENT_S:
        yield StopChild(child.name, True, f"it has not answered for {SILENT_S:.0f} s")
    elif not observed.listened and now_s - observed.started_s >= MUTE_S:
        yield StopChild(child.name, True, f"it does not listen after {MUTE_S:.0f} s")
    elif state is not None and state.phase in (Phase.FAILED, Phase.DRAINED):
        yield StopChild(child.name, True, state.message or f"its phase is {state.phase}")
    elif state is not None and child.role is not None and state.phase != Phase.DRAINING and state.role != child.role:
        yield AssignRole(child.name, child.role, _next_epoch(observed, state), child.because)


def _next_epoch(observed: ObservedChild, state: InstanceState) -> int:
    return max(state.epoch, observed.assigned.epoch if observed.assigned else 0) + 1
