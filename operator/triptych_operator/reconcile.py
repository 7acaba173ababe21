"""snapshot → plan → diff → actions, status, reasons. Pure; the shell observes, applies and calls again.

    snapshot ─► desired(snapshot) ─► diff(desired, snapshot, now) ─► actions ┐
        └────────────► status_of(snapshot, desired) ─► status ───────────────┴─► Outcome

A second call over the world that the actions made gives no actions.
"""

from dataclasses import dataclass

from triptych_operator.diff import Action, diff
from triptych_operator.plan.desired import desired, sizes_of
from triptych_operator.snapshot import Snapshot
from triptych_operator.status import ServiceStatus, status_of

UNSETTLED_S = 0.25
SETTLED_S = 1.0
"""Longest time to the next look; ends of children wake the operator at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reconcile decided.

    Attributes:
        actions: To be applied in order; any of them may fail or be lost.
        status: Of the world as observed, before the actions.
        reasons: One line for each action.
        requeue_s: Seconds to the next reconcile, if nothing happens before.
    """

    actions: tuple[Action, ...]
    status: ServiceStatus
    reasons: tuple[str, ...]
    requeue_s: float


def reconcile(snapshot: Snapshot, now_s: float) -> Outcome:
    """Decide; `now_s` is the operator's clock, in seconds."""
    spec = snapshot.service.spec
    wanted = desired(snapshot)
    status = status_of(snapshot, wanted, sizes_of(spec))
    if spec.suspend:
        return Outcome((), status, (), SETTLED_S)
    difference = diff(wanted, snapshot, now_s)
    reasons = tuple(f"{type(action).__name__} {action.name}: {action.because}" for action in difference.actions)
    longest_s = SETTLED_S if status.ready and not difference.actions else UNSETTLED_S
    requeue_s = longest_s if difference.due_in_s is None else min(longest_s, difference.due_in_s)
    return Outcome(difference.actions, status, reasons, requeue_s)
