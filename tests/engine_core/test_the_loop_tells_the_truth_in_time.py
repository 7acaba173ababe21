"""When the loop waits, when it tells load, when it audits; and the board on which a step is shown."""

import os
from collections.abc import Callable
from itertools import pairwise

import pytest

from fakes.core_harness import CoreHarness, SilentBoard, make_submit, prefill, sim_config
from triptych_contract.clock import ManualClock
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.board import BoardReader, BoardWriter, create_board
from triptych_engine.core.engine import Core, StepBoard
from triptych_engine.core.loop import AUDIT_AFTER_S, STATS_INTERVAL_S, CoreLoop
from triptych_engine.executor.base import Sampled, StepPlan
from triptych_engine.executor.sim import SimExecutor, load_sim
from triptych_engine.messages import (
    AuditResult,
    Cancel,
    CoreStats,
    Deltas,
    Inbox,
    Mode,
    Outbox,
    ReleaseLease,
    Shutdown,
)


class ScriptedChannel:
    """Gives out batches of messages; blocking polls move the clock as far as they were allowed to wait."""

    def __init__(self, clock: ManualClock, script: list[list[Inbox]]) -> None:
        self.clock = clock
        self.script = script
        self.waits: list[float | None] = []
        self.said: list[tuple[float, Outbox]] = []

    def poll(self, timeout_s: float | None) -> list[Inbox]:
        if timeout_s == 0.0:
            return []
        self.waits.append(timeout_s)
        if timeout_s is not None:
            self.clock.advance(timeout_s)
            return []
        return self.script.pop(0) if self.script else [Shutdown()]

    def send(self, message: Outbox) -> None:
        self.said.append((self.clock.now_s(), message))

    def of(self, kind: type) -> list[tuple[float, Outbox]]:
        return [(at_s, message) for at_s, message in self.said if isinstance(message, kind)]


class TickingExecutor(SimExecutor):
    """The simulated executor; each step takes some time of a manual clock."""

    clock: ManualClock
    step_s = 0.01

    def execute(self, plan: StepPlan) -> list[Sampled]:
        self.clock.advance(self.step_s)
        return super().execute(plan)


def run(
    script: list[list[Inbox]], *, board: StepBoard | None = None, spoil: Callable[[Core], None] | None = None
) -> ScriptedChannel:
    clock = ManualClock(50.0)
    channel = ScriptedChannel(clock, script)
    executor = load_sim(sim_config(), now_s=clock.now_s)
    executor.__class__ = TickingExecutor
    assert isinstance(executor, TickingExecutor)
    executor.clock = clock
    executor.bind(memoryview(bytearray(executor.info.layout.pool_bytes)))
    core = Core(executor, sim_config(), clock=clock, send=channel.send, board=board or SilentBoard())
    if spoil is not None:
        spoil(core)
    CoreLoop(core, channel, clock=clock).run()
    return channel


ASK = make_submit([65] * 40, sampling=SamplingParams(temperature=0.0, max_tokens=30), eos=())


def test_an_idle_core_without_work_waits_for_ever() -> None:
    assert run([]).waits == [None]


def test_load_is_told_at_start_on_admission_and_end_and_at_a_bounded_rate_between() -> None:
    empty, admitted, *stats = run([[ASK]]).of(CoreStats)
    assert isinstance(empty[1], CoreStats)
    assert isinstance(admitted[1], CoreStats)
    assert (empty[1].running, empty[1].blocks.free) == (0, empty[1].blocks.total)
    assert (admitted[1].running, admitted[1].step) == (1, 0), "told before its first step, which may be long"
    times = [at_s for at_s, _ in stats]
    assert all(later - sooner >= STATS_INTERVAL_S - 1e-9 for sooner, later in pairwise(times[:-1]))
    last_at_s, last = stats[-1]
    assert isinstance(last, CoreStats)
    assert (last_at_s, last.running, last.blocks.held) == (pytest.approx(50.0 + 30 * 0.01), 0, 0)
    assert 4 <= len(stats) <= 7


def test_messages_to_an_idle_core_change_what_it_tells_at_once() -> None:
    leg = make_submit([65] * 40, mode=Mode.PREFILL, lease="l")
    stats = [one for _, one in run([[leg], [ReleaseLease(lease="l")], [Cancel(id="nobody")]]).of(CoreStats)]
    assert [one.blocks.in_transfer for one in stats if isinstance(one, CoreStats)] == [0, 0, 2, 0]


def test_a_waiting_core_wakes_at_the_next_deadline() -> None:
    pull = make_submit([65] * 40, mode=Mode.PULL, lease="l", deadline_s=50.4)
    channel = run([[pull]])
    assert channel.waits[1] == pytest.approx(0.4)
    (_, deltas), *_ = channel.of(Deltas)
    assert isinstance(deltas, Deltas)
    assert deltas.at_s == pytest.approx(50.4)


def test_blocks_are_audited_once_after_work_has_ended() -> None:
    channel = run([[ASK]])
    assert channel.waits == [None, pytest.approx(AUDIT_AFTER_S), None]
    assert channel.of(AuditResult) == []


def test_faults_found_while_idle_are_reported() -> None:
    def spoil(core: Core) -> None:
        core.audit = lambda: ("block 7 is lost",)  # type: ignore[method-assign]

    ((_, result),) = run([[ASK]], spoil=spoil).of(AuditResult)
    assert isinstance(result, AuditResult)
    assert result.faults == ("block 7 is lost",)


def test_the_board_shows_a_running_step_and_its_predicted_time() -> None:
    descriptor = create_board()
    writer, reader = BoardWriter(descriptor), BoardReader(descriptor)
    os.close(descriptor)
    writer.begin(now_ns=5_000_000_000, predicted_ns=7_000_000)
    sample = reader.sample()
    assert (sample.step, sample.predicted_ms, sample.age_ms(now_ns=5_250_000_000)) == (0, 7.0, 250.0)
    writer.end(step=1)
    sample = reader.sample()
    assert (sample.step, sample.predicted_ms, sample.age_ms(now_ns=6_000_000_000)) == (1, 0.0, 0.0)
    writer.close()
    reader.close()


def test_steps_are_counted_on_the_board() -> None:
    descriptor = create_board()
    writer, reader = BoardWriter(descriptor), BoardReader(descriptor)
    os.close(descriptor)
    run([[ASK]], board=writer)
    assert (reader.sample().step, reader.sample().started_ns) == (30, 0)
    writer.close()
    reader.close()


class TestTheTimeOfAdmission:
    """Told once, with the first tokens or with the lease, and never that of a later admission."""

    def test_is_when_the_request_first_got_its_blocks(self) -> None:
        harness = CoreHarness(sim_config(max_sequences=1))
        for name in ("first", "second"):
            harness.tell(make_submit([65] * 40, request_id=name, sampling=SamplingParams(max_tokens=3)))
        while harness.step():
            harness.clock.advance(1.0)
        told = [(one.id, one.admitted_s) for said in harness.take(Deltas) for one in said.items if one.admitted_s]
        assert told == [("first", 100.0), ("second", 103.0)]

    def test_comes_with_the_lease_of_a_prefill_leg(self) -> None:
        harness = CoreHarness()
        harness.clock.advance(5.0)
        granted = prefill(harness, make_submit([65] * 40, mode=Mode.PREFILL, lease="l"))
        assert granted.admitted_s == 105.0

    def test_is_kept_over_a_preemption(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=6))
        for name in ("first", "second"):
            harness.tell(make_submit([65] * 40, request_id=name, sampling=SamplingParams(max_tokens=60)))
        while harness.step():
            harness.clock.advance(1.0)
        assert harness.stats().preemptions > 0
        told = [(one.id, one.admitted_s) for said in harness.take(Deltas) for one in said.items if one.admitted_s]
        assert told == [("first", 100.0), ("second", 100.0)]


class TestTheNumberOfMessagesTaken:
    def test_is_shown_on_the_board(self) -> None:
        descriptor = create_board()
        writer, reader = BoardWriter(descriptor), BoardReader(descriptor)
        os.close(descriptor)
        clock = ManualClock(100.0)
        channel = ScriptedChannel(clock, [[Cancel("a"), Cancel("b")], [Cancel("c")]])
        executor = load_sim(sim_config(), now_s=clock.now_s)
        core = Core(executor, sim_config(), clock=clock, send=channel.send, board=writer)
        CoreLoop(core, channel, clock=clock, on_taken=writer.take).run()
        assert reader.sample().taken == 4, "three, and the one that ends the loop"
        writer.close()
        reader.close()
