"""What all requests share."""

from dataclasses import dataclass, field

import aiohttp

from triptych_contract.clock import Clock
from triptych_contract.ids import IdSource
from triptych_router.admission.gate import Gate
from triptych_router.cluster.watch import ClusterWatch
from triptych_router.dispatch.lease import Leases
from triptych_router.dispatch.retry import Budget
from triptych_router.schedule.load import LoadBook
from triptych_router.schedule.policies import Policy
from triptych_router.telemetry import Telemetry


@dataclass(slots=True, kw_only=True)
class Services:
    """The router's long-lived parts and the settings that a request's way depends on.

    Attributes:
        new_id: Mints ids of requests and leases.
        session: Calls to engines; of a pool of its own, so that control calls never wait behind prompts.
        max_attempts: Tries of one stage for one request.
        queue_timeout_s: How long a request waits while all instances are full.
        handover_min_tokens: Shorter prompts are computed by the decode instance.
        expose_route: Tell which instances served a request, in a header.
    """

    new_id: IdSource
    session: aiohttp.ClientSession
    watch: ClusterWatch
    leases: Leases
    gate: Gate
    telemetry: Telemetry
    clock: Clock
    policy: Policy
    token: str
    max_attempts: int
    queue_timeout_s: float
    handover_min_tokens: int
    expose_route: bool
    book: LoadBook = field(default_factory=LoadBook)
    budget: Budget = field(default_factory=Budget)
    turns: int = 0

    def turn(self) -> int:
        """A number that rises with each decision."""
        self.turns += 1
        return self.turns - 1

    def spend_retry(self) -> bool:
        """Take one retry from the budget; False if there is none."""
        left = self.budget.spend(self.clock.now_s())
        if left is None:
            return False
        self.budget = left
        return True
