"""The core without its process: driven by hand, step by step, with a clock that moves only when told to.

`CoreHarness` keeps everything the core said and puts the tokens of each choice together. `hand_over` does in
one process what prefill and decode instances do over a KV link: it copies the blocks that were asked for.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from triptych_contract.clock import ManualClock
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.config import CoreConfig, SimConfig
from triptych_engine.core.engine import Core
from triptych_engine.executor.base import Executor, Sampled, StepPlan
from triptych_engine.executor.sim import SimExecutor, load_sim
from triptych_engine.kv.layout import KVLayout
from triptych_engine.messages import (
    CoreStats,
    Delta,
    Deltas,
    FinishReason,
    Inbox,
    LeaseGranted,
    Mode,
    Outbox,
    PullBlock,
    PullEnded,
    PullWanted,
    Rejected,
    ReleaseLease,
    Submit,
)

EOS = 256
M = TypeVar("M")


class SilentBoard:
    """A board that nobody reads."""

    def begin(self, *, now_ns: int, predicted_ns: int) -> None:
        """Nothing."""

    def end(self, *, step: int) -> None:
        """Nothing."""


class RecordingExecutor:
    """The simulated executor, with every plan kept and failures on demand."""

    def __init__(self, inner: SimExecutor) -> None:
        self.inner = inner
        self.info = inner.info
        self.bind = inner.bind
        self.warm_up = inner.warm_up
        self.copy_blocks = inner.copy_blocks
        self.export_blocks = inner.export_blocks
        self.import_blocks = inner.import_blocks
        self.encode = inner.encode
        self.plans: list[StepPlan] = []
        self.fail_steps = 0

    def execute(self, plan: StepPlan) -> list[Sampled]:
        self.plans.append(plan)
        if self.fail_steps:
            self.fail_steps -= 1
            raise RuntimeError("the device is on fire")
        return self.inner.execute(plan)


def sim_config(
    *,
    kv_blocks: int = 64,
    max_batch_tokens: int = 512,
    max_sequences: int = 32,
    max_waiting: int = 1024,
    lease_share_percent: int = 50,
    max_context: int = 4096,
    token_bytes: int = 8,
) -> CoreConfig:
    """A core that never waits for simulated time."""
    return CoreConfig(
        kv_blocks=kv_blocks,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
        lease_share_percent=lease_share_percent,
        max_context=max_context,
        sim=SimConfig(eos_token_ids=(EOS,), time_scale=0.0, token_bytes=token_bytes),
    )


def make_submit(
    token_ids: list[int],
    *,
    request_id: str = "r",
    mode: Mode = Mode.SERVE,
    sampling: SamplingParams | None = None,
    lease: str = "",
    deadline_s: float | None = None,
    chain_root: bytes = b"root",
    eos: tuple[int, ...] = (EOS,),
) -> Submit:
    """A request with greedy sampling of 16 tokens unless told otherwise."""
    return Submit(
        id=request_id,
        token_ids=token_ids,
        sampling=sampling or SamplingParams(temperature=0.0, max_tokens=16),
        mode=mode,
        chain_root=chain_root,
        eos_token_ids=eos,
        deadline_s=deadline_s,
        lease=lease,
        remote_num_tokens=len(token_ids) if mode is Mode.PULL else 0,
    )


class CoreHarness:
    """One core and all that it has said.

    Args:
        config: As the core process gets it.
        wrap: Makes the executor from the simulated one.
    """

    def __init__(
        self,
        config: CoreConfig | None = None,
        *,
        clock: ManualClock | None = None,
        wrap: Callable[[SimExecutor], Executor] = lambda executor: executor,
    ) -> None:
        config = config or sim_config()
        self.clock = clock or ManualClock(100.0)
        sim = load_sim(config, now_s=self.clock.now_s)
        self.layout: KVLayout = sim.info.layout
        self.pool = bytearray(self.layout.pool_bytes)
        self.executor = wrap(sim)
        self.executor.bind(memoryview(self.pool))
        self.said: list[Outbox] = []
        self.core = Core(self.executor, config, clock=self.clock, send=self._hear, board=SilentBoard())
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[str, int], FinishReason] = {}

    def _hear(self, message: Outbox) -> None:
        self.said.append(message)
        for delta in message.items if isinstance(message, Deltas) else ():
            self._collect(delta)

    def _collect(self, delta: Delta) -> None:
        tokens = self.tokens[delta.id, delta.choice]
        assert delta.first_position == len(tokens), "a gap in the positions"
        assert (delta.id, delta.choice) not in self.ends, "a choice ended twice"
        tokens.extend(delta.token_ids)
        if delta.finish_reason is not None:
            self.ends[delta.id, delta.choice] = delta.finish_reason

    def take(self, kind: type[M]) -> list[M]:
        """Messages of one kind since the last call; the others stay."""
        found = [one for one in self.said if isinstance(one, kind)]
        self.said = [one for one in self.said if not isinstance(one, kind)]
        return found

    def tell(self, *messages: Inbox) -> None:
        """Messages from the server."""
        for message in messages:
            self.core.receive(message)

    def step(self, *, audited: bool = True) -> bool:
        """One step; the blocks are audited after it."""
        busy = self.core.step()
        if audited:
            self.check()
        return busy

    def run(self, *, max_steps: int = 10_000) -> int:
        """Step until nothing can be computed; the number of steps."""
        for steps in range(max_steps):
            if not self.step():
                return steps
        raise AssertionError(f"still busy after {max_steps} steps")

    def check(self) -> None:
        """Block conservation."""
        assert self.core.audit() == ()

    def check_empty(self) -> None:
        """Nothing is left: no request, no lease, no held block."""
        stats = self.stats()
        assert self.core.num_live == 0
        assert (stats.running, stats.waiting, stats.waiting_tokens, stats.context_tokens, stats.leases) == (0,) * 5
        assert (stats.blocks.held, stats.blocks.in_transfer) == (0, 0)
        assert stats.blocks.free + stats.blocks.cached == stats.blocks.total
        self.check()

    def stats(self) -> CoreStats:
        """Load, blocks and counters now."""
        return self.core.stats()

    def generate(self, submit: Submit) -> list[int]:
        """Serve one request to its end; the tokens of its first choice."""
        self.tell(submit)
        self.run()
        rejected = self.take(Rejected)
        assert not rejected, rejected
        return self.tokens[submit.id, 0]

    def block(self, block: int) -> memoryview:
        """The bytes of one physical block."""
        size = self.layout.block_bytes
        return memoryview(self.pool)[block * size : (block + 1) * size]


def copy_blocks(
    *, source: CoreHarness, granted: LeaseGranted, target: CoreHarness, wanted: tuple[PullBlock, ...]
) -> tuple[int, ...]:
    """Copy the blocks that were asked for, valid tokens only; the chain indices that were copied."""
    for one in wanted:
        slots = memoryview(source.block(granted.blocks[one.index]))
        into = target.block(one.block)
        for segment in range(source.layout.segments):
            first = segment * source.layout.segment_bytes
            end = first + one.tokens * source.layout.token_bytes
            into[first:end] = slots[first:end]
    return tuple(one.index for one in wanted)


def prefill(producer: CoreHarness, submit: Submit) -> LeaseGranted:
    """Run a prefill leg to its lease."""
    producer.tell(submit)
    producer.run()
    (granted,) = producer.take(LeaseGranted)
    return granted


def hand_over(producer: CoreHarness, consumer: CoreHarness, submit: Submit) -> list[int]:
    """Prefill there, pull and decode here; the tokens of the first choice."""
    leg = make_submit(
        submit.token_ids, request_id=f"{submit.id}-prefill", mode=Mode.PREFILL, lease="lease", sampling=submit.sampling
    )
    granted = prefill(producer, leg)
    consumer.tell(
        Submit(
            id=submit.id,
            token_ids=submit.token_ids,
            sampling=submit.sampling,
            mode=Mode.PULL,
            chain_root=submit.chain_root,
            eos_token_ids=submit.eos_token_ids,
            lease="lease",
            remote_num_tokens=granted.num_tokens,
        )
    )
    consumer.run()
    (wanted,) = consumer.take(PullWanted)
    if wanted.blocks:
        received = copy_blocks(source=producer, granted=granted, target=consumer, wanted=wanted.blocks)
        consumer.tell(PullEnded(id=submit.id, ok=True, received=received))
    producer.tell(ReleaseLease(lease="lease"))
    producer.run()
    consumer.run()
    return consumer.tokens[submit.id, 0]
