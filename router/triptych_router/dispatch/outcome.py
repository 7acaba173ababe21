"""What became of a request, gathered while it runs and told once at its end."""

from dataclasses import dataclass, field
from enum import StrEnum

from triptych_contract.roles import Stage


class Outcome(StrEnum):
    """The one end of a request."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Journey:
    """A request's way, for its log line and the metrics.

    Attributes:
        started_s: When it came, on the router's clock.
        served_by: Instance of each stage that answered.
        shape, reason: Of the last route.
        attempts: Tries of each stage.
        first_event_s: When the first event went to the client.
        queued_s: Time spent waiting for an instance.
        tokens: Delivered by events, as the ledger counts them.
        code: Wire code of the error that the client got.
        outcome: How it ended; None while it runs.
    """

    started_s: float
    model: str = ""
    served_by: dict[Stage, str] = field(default_factory=dict)
    shape: str = ""
    reason: str = ""
    attempts: dict[Stage, int] = field(default_factory=dict)
    first_event_s: float | None = None
    queued_s: float = 0.0
    tokens: int = 0
    code: str = ""
    outcome: Outcome | None = None

    def route(self) -> str:
        """`stage=instance` pairs in the order of stages."""
        return ", ".join(f"{stage}={self.served_by[stage]}" for stage in Stage if stage in self.served_by)
