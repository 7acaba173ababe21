"""The parts of one engine's server, and what it says of itself. One owner: the event loop."""

import asyncio
from dataclasses import dataclass, field

import msgspec

from triptych_contract.clock import Clock
from triptych_contract.ids import IdSource
from triptych_contract.instance import BlockCounts, HandoverCounts, InstanceState, LoadSample
from triptych_contract.profile import StepProfile
from triptych_engine.messages import CoreStats, Inbox, Ready
from triptych_engine.server.card import ModelCard
from triptych_engine.server.metrics import EngineMetrics
from triptych_engine.server.requests import RequestTable
from triptych_engine.server.role import RoleState
from triptych_engine.server.supervise import CoreProcess
from triptych_engine.settings import Settings
from triptych_engine.transfer.service import Handover

BLOCK_TOKENS = 32
SPARE_CALLS = 256
"""Calls beyond those that the core takes: being read, tokenised, answered, or about to be refused by it."""
NO_STATS = CoreStats(
    step=0,
    running=0,
    waiting=0,
    waiting_tokens=0,
    context_tokens=0,
    blocks=BlockCounts(),
    leases=0,
    tokens_recomputed=0,
    prefix_queries=0,
    prefix_hits=0,
    preemptions=0,
    prompt_tokens=0,
    generation_tokens=0,
    encoder_runs=0,
)


class CoreGone(ConnectionError):
    """There is no core to send to, not yet or no more."""


@dataclass(kw_only=True)
class Engine:
    """All that handlers need.

    Attributes:
        settings: Of the program.
        incarnation: Id of this life of the process.
        card: The model.
        role: Role, epoch and phase.
        clock: Monotonic; the core shares it.
        new_id: Source of 128-bit ids.
        metrics: What the server counts.
        handover: Both ends of hand-overs.
        core, ready, stats: The core process, what it said when it was ready, and its last sample.
        encoding: Held while the core embeds images, so that no image is embedded twice.
    """

    settings: Settings
    incarnation: str
    card: ModelCard
    role: RoleState
    clock: Clock
    new_id: IdSource
    handover: Handover
    metrics: EngineMetrics = field(default_factory=EngineMetrics)
    core: CoreProcess | None = None
    ready: Ready | None = None
    stats: CoreStats = NO_STATS
    encoding: asyncio.Lock = field(default_factory=asyncio.Lock)
    table: RequestTable = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.table = RequestTable(self.send, max_calls=settings.max_sequences + settings.max_waiting + SPARE_CALLS)

    def send(self, message: Inbox) -> None:
        """Send to the core; raises `ConnectionError` if there is none."""
        if self.core is None:
            raise CoreGone("the core has not started")
        self.core.send(message)

    @property
    def max_context(self) -> int:
        """Longest prompt plus output in tokens; 0 while the model is loaded."""
        return self.ready.max_context if self.ready else 0

    @property
    def idle(self) -> bool:
        """True if nothing is in flight: no request, no lease."""
        return not self.table.calls and not self.handover.leases

    def counts(self) -> HandoverCounts:
        """Counters of server and core together."""
        return msgspec.structs.replace(
            self.handover.counts(),
            tokens_recomputed=self.stats.tokens_recomputed,
            encoder_runs=self.stats.encoder_runs,
        )

    def sample(self) -> LoadSample:
        """One heartbeat; the step's age needs no answer of the core, so it is told even if the core hangs."""
        stats, board = self.stats, self.core.board() if self.core is not None else None
        return LoadSample(
            step=board.step if board else stats.step,
            step_age_ms=self.core.stuck_ms() if self.core is not None else 0.0,
            step_predicted_ms=board.predicted_ms if board else 0.0,
            running=stats.running,
            waiting=stats.waiting,
            waiting_tokens=stats.waiting_tokens,
            context_tokens=stats.context_tokens,
            leases=self.handover.leases,
            streams=self.table.calls,
            blocks=stats.blocks,
            handover=self.counts(),
        )

    def state(self) -> InstanceState:
        """All that the instance says of itself."""
        ready, settings = self.ready, self.settings
        return InstanceState(
            id=settings.instance_id,
            incarnation=self.incarnation,
            service=settings.service,
            capable=tuple(sorted(self.role.capable)),
            role=self.role.assignment.role,
            epoch=self.role.assignment.epoch,
            phase=self.role.phase,
            model=self.card.name,
            loading_percent=100 if ready else self.role.loading_percent,
            block_tokens=ready.layout.block_tokens if ready else BLOCK_TOKENS,
            max_context=self.max_context,
            link_class=self.handover.link_class,
            profile=ready.profile if ready else StepProfile(),
            load=self.sample(),
            message=self.role.message,
        )
