"""Pure: what follows a leg that failed. A retry is made before the first byte only, and within a budget.

The budget keeps retries from adding to an overload: it fills by a share of the requests and by a floor, so that
a quiet router may still retry, and each retry takes one from it.
"""

from dataclasses import dataclass
from enum import StrEnum

from triptych_contract.errors import (
    HandoverRefused,
    Internal,
    Moved,
    NoInstance,
    NotReady,
    Overloaded,
    TriptychError,
    UpstreamFailed,
)
from triptych_contract.roles import Stage

RATIO = 0.2
FLOOR_PER_S = 10.0
CAP = 100.0
OVERLOADED_RETRY_MS = 1000


class Cause(StrEnum):
    """How an attempt ended without its answer."""

    CONNECT = "connect"
    DIED = "died"
    GONE = "gone"
    REFUSED = "refused"
    STALE = "stale"


class Step(StrEnum):
    """What is done next."""

    ELSEWHERE = "elsewhere"
    QUEUE = "queue"
    BACK = "back"
    GIVE_UP = "give-up"


class LegFailed(Exception):
    """One attempt ended without its answer.

    Attributes:
        stage: The leg's stage.
        cause: How it ended.
        error: The typed refusal; for other causes what the client is told if nothing else helps.
        status: HTTP status of a refusal, 0 if the answer itself was at fault.
        raw: The refusal's body as received, to forward it untouched.
        delivered: Events of this leg have reached the client.
    """

    def __init__(
        self,
        stage: Stage,
        cause: Cause,
        error: TriptychError | None = None,
        *,
        status: int = 0,
        raw: bytes = b"",
        delivered: bool = False,
    ) -> None:
        super().__init__(cause.value)
        self.stage = stage
        self.cause = cause
        self.error = error or UpstreamFailed("The instance that served this request was lost.")
        self.status = status
        self.raw = raw
        self.delivered = delivered

    @property
    def left_nothing(self) -> bool:
        """The instance holds nothing of this attempt: it was never reached, or it refused in so many words."""
        return self.cause is Cause.CONNECT or (self.cause is Cause.REFUSED and self.status != 0)


def next_step(failure: LegFailed, *, attempts: int, max_attempts: int) -> Step:
    """Decide; `attempts` counts the tries of this stage so far, the failed one included.

    A refused ticket goes a stage back; a full instance is left alone for a while; a defect of ours inside an
    instance is tried on one other, so that a poisonous request cannot walk through the pool.
    """
    if failure.delivered:
        return Step.GIVE_UP
    if failure.cause is Cause.REFUSED:
        return _after_refusal(failure, attempts, max_attempts)
    return Step.ELSEWHERE if attempts < max_attempts else Step.GIVE_UP


def _after_refusal(failure: LegFailed, attempts: int, max_attempts: int) -> Step:
    error = failure.error
    if type(error) is Overloaded:
        return Step.QUEUE
    if attempts >= max_attempts:
        return Step.GIVE_UP
    if isinstance(error, HandoverRefused):
        return Step.BACK if failure.stage is not Stage.ENCODE else Step.ELSEWHERE
    if isinstance(error, (Internal, UpstreamFailed)):
        return Step.ELSEWHERE if attempts < 2 else Step.GIVE_UP
    return Step.ELSEWHERE if error.elsewhere else Step.GIVE_UP


def shown(error: TriptychError) -> TriptychError:
    """The error as a client may see it: what only concerns router and instances becomes a 503."""
    if isinstance(error, (Moved, HandoverRefused, NotReady)):
        return NoInstance("No instance can take this request at present; try again.", retry_after_ms=1000)
    if isinstance(error, Overloaded) and error.retry_after_ms is None:
        return type(error)(error.message, param=error.param, retry_after_ms=OVERLOADED_RETRY_MS)
    return error


@dataclass(frozen=True, slots=True)
class Budget:
    """Retries that may still be made, as of a time."""

    left: float = FLOOR_PER_S
    at_s: float = 0.0

    def request(self) -> "Budget":
        """A request came: a share of a retry more."""
        return Budget(min(CAP, self.left + RATIO), self.at_s)

    def spend(self, now_s: float) -> "Budget | None":
        """Take one retry, None if there is none."""
        refilled = min(FLOOR_PER_S, self.left + FLOOR_PER_S * max(0.0, now_s - self.at_s))
        left = max(self.left, refilled)
        return Budget(left - 1, now_s) if left >= 1 else None
