"""What this instance takes on now: role, epoch and phase, changed only by the contract's tables."""

from collections.abc import Callable

from triptych_contract.errors import BadRequest, EpochConflict, Moved, NotReady
from triptych_contract.roles import (
    STAGES,
    Assignment,
    Phase,
    PhaseEvent,
    Role,
    Stage,
    Verdict,
    judge,
    next_phase,
    role_of,
)

RETRY_AFTER_MS = 1000


class RoleState:
    """Role, epoch and phase of one instance.

    Args:
        initial: Role and epoch at start; epoch 0 means that nobody has assigned one.
        capable: Stages that the instance can take.
        on_change: Called after each change.
    """

    def __init__(
        self, *, initial: Assignment, capable: frozenset[Stage], on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.assignment = initial
        self.capable = capable
        self.phase = Phase.LOADING
        self.loading_percent = 0
        self.message = ""
        self._has_model = False
        self._ends = False
        self._on_change = on_change

    @property
    def ready(self) -> bool:
        """True if new work is taken."""
        return self.phase is Phase.SERVING and self.assignment.role is not Role.UNASSIGNED

    def assign(self, wanted: Assignment) -> None:
        """Take a role.

        Raises:
            EpochConflict: A stale epoch, or another role for the present one.
            BadRequest: The instance cannot take the role.
        """
        verdict = judge(self.assignment, wanted, self.capable)
        if verdict is Verdict.INCAPABLE:
            raise BadRequest(f"This instance cannot take the role {wanted.role.value}.", param="role")
        if verdict in (Verdict.STALE, Verdict.CONFLICT):
            raise EpochConflict(
                f"The epoch here is {self.assignment.epoch}, with the role {self.assignment.role.value}."
            )
        if verdict is Verdict.ACCEPT:
            self.assignment = wanted
            self._on_change()

    def fall_back(self) -> bool:
        """Nobody assigns a role: take the largest one, still at epoch 0. True if that changed anything."""
        if self.assignment.epoch or self.assignment.role is not Role.UNASSIGNED:
            return False
        self.assignment = Assignment(role_of(self.capable), 0)
        self._on_change()
        return True

    def apply(self, event: PhaseEvent, message: str = "") -> None:
        """Move to the next phase; an event that the phase does not know leaves it as it is."""
        self._has_model |= event is PhaseEvent.LOADED
        phase = next_phase(self.phase, event)
        if phase is not self.phase:
            self.phase = phase
            self.message = message
            self._on_change()

    def drain_for_good(self) -> None:
        """The program ends once nothing is in flight; no drain can be taken back from now on."""
        self._ends = True
        self.apply(PhaseEvent.DRAIN)

    def cancel_drain(self) -> None:
        """Take new work again.

        Raises:
            NotReady: The program ends, or a drain during loading left it without a model so far.
        """
        if self._ends:
            raise NotReady("This instance is shutting down.", retry_after_ms=RETRY_AFTER_MS)
        if self.phase in (Phase.DRAINING, Phase.DRAINED) and not self._has_model:
            raise NotReady("This instance is still loading.", retry_after_ms=RETRY_AFTER_MS)
        self.apply(PhaseEvent.CANCEL_DRAIN)

    def load_progress(self, percent: int, text: str) -> None:
        """Weights are being loaded."""
        self.loading_percent, self.message = percent, text

    def admit(self, stage: Stage, epoch: int | None) -> None:
        """Accept one call for a stage.

        Args:
            stage: That the call needs.
            epoch: That the caller believes; None = no check.

        Raises:
            NotReady: Loading, draining, failed, or without a role.
            Moved: Another epoch, or the role has no such stage.
        """
        if self.phase is not Phase.SERVING:
            raise NotReady(f"This instance is {self.phase.value}.", retry_after_ms=RETRY_AFTER_MS)
        if epoch is not None and epoch != self.assignment.epoch:
            raise Moved("This instance has been given another role since.")
        if self.assignment.role is Role.UNASSIGNED:
            raise NotReady("This instance has no role yet.", retry_after_ms=RETRY_AFTER_MS)
        if stage not in STAGES[self.assignment.role]:
            raise Moved(f"This instance does not take {stage.value} work now.")
