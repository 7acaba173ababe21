"""Sampling over candidates, step times, and the geometry of the simulated executor."""

import math
from collections import Counter

import pytest

from triptych_contract.profile import StepProfile
from triptych_engine.core.config import CoreConfig, SimConfig
from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.executor.cost import plan_seconds
from triptych_engine.executor.sim import load_sim
from triptych_engine.sim.pace import Pace
from triptych_engine.sim.sampling import choose
from triptych_engine.sim.vocabulary import FLOOR_LOGPROB, NUM_CANDIDATES, Vocabulary

STATE = 0x1234_5678_9ABC_DEF1
VOCABULARY = Vocabulary(range(32, 127), (256,))
RAW = VOCABULARY.candidates(STATE)


def draw(count: int, **spec: object) -> Counter[int]:
    """Tokens chosen at many positions after the same state of mind."""
    return Counter(
        choose(SampleSpec(position=position, **spec), STATE, VOCABULARY)[0]  # type: ignore[arg-type]
        for position in range(count)
    )


class TestSampling:
    def test_candidates_are_distinct_and_their_probabilities_sum_to_one(self) -> None:
        for state in range(0, 2**64, 2**64 // 500):
            raw = VOCABULARY.candidates(state)
            assert len(set(raw.token_ids)) == len(raw.token_ids) >= NUM_CANDIDATES
            assert math.fsum(map(math.exp, raw.logprobs)) == pytest.approx(1.0)

    def test_greedy_takes_the_first(self) -> None:
        assert draw(20) == {RAW.token_ids[0]: 20}
        assert draw(20, temperature=1.0, top_k=1) == {RAW.token_ids[0]: 20}

    def test_frequencies_follow_the_model(self) -> None:
        counts = draw(20_000, temperature=1.0)
        for token, logprob in zip(RAW.token_ids, RAW.logprobs, strict=True):
            assert counts[token] / 20_000 == pytest.approx(math.exp(logprob), abs=0.012)

    def test_a_low_temperature_sharpens(self) -> None:
        assert draw(500, temperature=0.1)[RAW.token_ids[0]] > 450

    def test_top_k_keeps_the_first_k(self) -> None:
        assert set(draw(500, temperature=1.5, top_k=3)) == set(RAW.token_ids[:3])

    def test_top_p_keeps_the_smallest_head_that_reaches_it(self) -> None:
        wanted = math.exp(RAW.logprobs[0]) + math.exp(RAW.logprobs[1]) - 0.01
        assert set(draw(500, temperature=1.0, top_p=wanted)) == set(RAW.token_ids[:2])

    def test_top_p_of_nothing_keeps_the_first(self) -> None:
        assert set(draw(50, temperature=1.0, top_p=0.0)) == {RAW.token_ids[0]}

    def test_min_p_drops_what_is_far_below_the_best(self) -> None:
        limit = math.exp(RAW.logprobs[4] - RAW.logprobs[0]) - 0.001
        assert set(draw(1000, temperature=1.0, min_p=limit)) == set(RAW.token_ids[:5])

    def test_banned_tokens_are_never_chosen(self) -> None:
        assert set(draw(500, temperature=2.0, banned=RAW.token_ids[:10])) == set(RAW.token_ids[10:])

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"choice": 1}, {"prompt_index": 1}], ids=["seed", "choice", "prompt index"]
    )
    def test_draws_differ_by(self, change: dict[str, int]) -> None:
        def tokens(**more: int) -> list[int]:
            specs = (SampleSpec(temperature=1.0, position=position, **more) for position in range(50))
            return [choose(spec, STATE, VOCABULARY)[0] for spec in specs]

        assert tokens() == tokens()
        assert tokens() != tokens(**change)

    def test_logprobs_are_those_of_the_raw_model(self) -> None:
        spec = SampleSpec(temperature=0.1, top_k=1, logprobs=2, banned=(RAW.token_ids[0],))
        token, logprobs = choose(spec, STATE, VOCABULARY)
        assert token == RAW.token_ids[1]
        assert logprobs is not None
        assert (logprobs.chosen, logprobs.rank) == (RAW.logprobs[1], 2)
        assert logprobs.top == tuple(zip(RAW.token_ids[:2], RAW.logprobs[:2], strict=True))

    def test_the_log_probability_of_a_last_resort_is_finite(self) -> None:
        _, logprobs = choose(SampleSpec(logprobs=0, banned=RAW.token_ids), STATE, VOCABULARY)
        assert logprobs is not None
        assert (logprobs.chosen, logprobs.rank, logprobs.top) == (FLOOR_LOGPROB, NUM_CANDIDATES + 1, ())

    def test_a_vocabulary_needs_enough_to_say(self) -> None:
        with pytest.raises(ValueError, match="16"):
            Vocabulary(range(15), ())


class SlowClock:
    """A clock whose sleeps last longer than asked for."""

    def __init__(self, late_s: float) -> None:
        self.now = 0.0
        self.late_s = late_s
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.late_s

    def pace(self, **changes: float) -> Pace:
        return Pace(now_s=lambda: self.now, sleep=self.sleep, **changes)  # type: ignore[arg-type]


def steps(pace: Pace, count: int, seconds: float = 0.01) -> None:
    for _ in range(count):
        pace.finish(began_s=pace.begin(), seconds=seconds)


class TestPace:
    def test_lateness_does_not_add_up(self) -> None:
        clock = SlowClock(late_s=0.002)
        steps(clock.pace(), 100)
        assert clock.now == pytest.approx(1.0 + 0.002)

    def test_a_step_after_idleness_begins_when_it_begins(self) -> None:
        clock = SlowClock(late_s=0.0)
        pace = clock.pace()
        steps(pace, 1)
        clock.now += 5.0
        steps(pace, 1)
        assert clock.now == pytest.approx(5.02)

    def test_a_scale_of_zero_never_waits(self) -> None:
        clock = SlowClock(late_s=0.0)
        steps(clock.pace(time_scale=0.0), 10)
        assert clock.slept == []

    def test_jitter_is_bounded_and_the_same_for_the_same_seed(self) -> None:
        first, second = SlowClock(late_s=0.0), SlowClock(late_s=0.0)
        steps(first.pace(jitter_percent=20, seed=3), 50)
        steps(second.pace(jitter_percent=20, seed=3), 50)
        assert first.slept == second.slept
        assert len({round(seconds, 6) for seconds in first.slept}) > 40
        assert all(0.0079 < seconds < 0.0121 for seconds in first.slept)


class TestCost:
    PROFILE = StepProfile(
        base_s=1.0, prefill_token_s=0.1, prefill_context_s=0.001, sequence_s=0.01, context_token_s=0.0001
    )

    @staticmethod
    def row(count: int, first: int, *, position: int | None = None) -> PlanRow:
        sample = None if position is None else SampleSpec(position=position)
        return PlanRow(1, [65] * count, first, [1], first, sample)

    def test_decoding_rows_cost_a_sequence_and_their_context(self) -> None:
        plan = StepPlan((self.row(1, 99, position=5), self.row(1, 49, position=1)))
        assert plan_seconds(self.PROFILE, plan) == pytest.approx(1.0 + 2 * 0.01 + 150 * 0.0001)

    def test_prompt_rows_cost_their_tokens_times_their_own_context(self) -> None:
        plan = StepPlan((self.row(10, 0), self.row(10, 100, position=0)))
        assert plan_seconds(self.PROFILE, plan) == pytest.approx(1.0 + 20 * 0.1 + 10 * 5 * 0.001 + 10 * 105 * 0.001)


class TestGeometry:
    @pytest.mark.parametrize("token_bytes", [0, 4, 12])
    def test_slots_are_whole_words(self, token_bytes: int) -> None:
        with pytest.raises(ValueError, match="multiple of 8"):
            load_sim(CoreConfig(sim=SimConfig(token_bytes=token_bytes)))

    def test_memory_buys_blocks(self) -> None:
        layout = load_sim(CoreConfig(kv_memory_bytes=1_000_000, sim=SimConfig(token_bytes=64))).info.layout
        assert layout.num_blocks == 1_000_000 // layout.block_bytes
        assert layout.describe() == "2x32x64"

    def test_engines_that_say_the_same_have_one_fingerprint(self) -> None:
        def fingerprint(**changes: object) -> str:
            return load_sim(CoreConfig(kv_blocks=4, sim=SimConfig(**changes))).info.fingerprint  # type: ignore[arg-type]

        assert fingerprint(seed=1, jitter_percent=5.0) == fingerprint(seed=2)
        assert fingerprint(eos_token_ids=(256,)) != fingerprint()
