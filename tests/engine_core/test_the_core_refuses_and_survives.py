"""What is refused at the door, and what a failing executor does to the requests in its step."""

import pytest

from fakes.core_harness import CoreHarness, RecordingExecutor, make_submit, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.engine import CoreFault
from triptych_engine.core.request import MOVES, State
from triptych_engine.executor.sim import SimExecutor
from triptych_engine.messages import (
    Audit,
    AuditResult,
    Encode,
    Encoded,
    LeaseGranted,
    Mode,
    PullEnded,
    Rejected,
    Submit,
)


def rejected(harness: CoreHarness) -> list[tuple[str, str]]:
    return [(one.id, one.code) for one in harness.take(Rejected)]


class TestTheDoor:
    @pytest.mark.parametrize(
        ("submit", "code"),
        [
            pytest.param(make_submit([]), "invalid_value", id="empty prompt"),
            pytest.param(make_submit([65, 260]), "invalid_value", id="token id above the vocabulary"),
            pytest.param(make_submit([65, -1]), "invalid_value", id="negative token id"),
            pytest.param(make_submit([65] * 100), "context_length_exceeded", id="no room for one token"),
            pytest.param(
                make_submit([65] * 100, mode=Mode.PREFILL, lease="l"), "context_length_exceeded", id="prefill"
            ),
            pytest.param(make_submit([65], mode=Mode.PREFILL), "invalid_value", id="prefill without a lease"),
        ],
    )
    def test_an_impossible_request_is_refused_before_any_work(self, submit: Submit, code: str) -> None:
        harness = CoreHarness(sim_config(max_context=100))
        harness.tell(submit)
        assert not harness.step()
        assert rejected(harness) == [("r", code)]
        assert harness.stats().step == 0
        harness.check_empty()

    def test_a_prompt_larger_than_the_whole_pool_is_refused(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=5))
        harness.tell(make_submit([65] * 128, request_id="too large"), make_submit([65] * 127, request_id="just fits"))
        harness.run()
        assert rejected(harness) == [("too large", "context_length_exceeded")]
        assert len(harness.tokens["just fits", 0]) == 1

    def test_a_full_queue_says_when_to_try_again(self) -> None:
        harness = CoreHarness(sim_config(max_waiting=3))
        for number in range(5):
            harness.tell(make_submit([65], request_id=str(number)))
        answers = harness.take(Rejected)
        assert [(one.id, one.code) for one in answers] == [("3", "overloaded"), ("4", "overloaded")]
        assert all(one.retry_after_ms is not None and one.retry_after_ms >= 1000 for one in answers)

    def test_an_id_in_use_is_refused_and_the_first_request_goes_on(self) -> None:
        harness = CoreHarness()
        harness.tell(make_submit([65]), make_submit([66]))
        assert rejected(harness) == [("r", "invalid_value")]
        harness.run()
        assert len(harness.tokens["r", 0]) == 16

    def test_a_lease_in_use_is_refused(self) -> None:
        harness = CoreHarness()
        harness.tell(make_submit([65], mode=Mode.PREFILL, lease="l"))
        harness.run()
        assert harness.take(LeaseGranted)
        harness.tell(make_submit([65], request_id="again", mode=Mode.PREFILL, lease="l"))
        assert rejected(harness) == [("again", "invalid_value")]


class TestAFailingExecutor:
    @staticmethod
    def failing(steps: int) -> tuple[CoreHarness, RecordingExecutor]:
        made: list[RecordingExecutor] = []

        def wrap(executor: SimExecutor) -> RecordingExecutor:
            made.append(RecordingExecutor(executor))
            return made[0]

        harness = CoreHarness(wrap=wrap)
        made[0].fail_steps = steps
        return harness, made[0]

    def test_one_failed_step_ends_its_requests_with_an_error_and_no_others(self) -> None:
        harness, _ = self.failing(1)
        harness.tell(make_submit([65] * 40, request_id="a"), make_submit([66] * 40, request_id="b"))
        harness.step()
        assert rejected(harness) == [("a", "internal_error"), ("b", "internal_error")]
        harness.check_empty()
        assert len(harness.generate(make_submit([67] * 40, request_id="c"))) == 16

    def test_a_failed_step_leaves_nothing_in_the_prefix_cache(self) -> None:
        harness, _ = self.failing(1)
        harness.tell(make_submit([65] * 100))
        harness.step()
        assert harness.stats().blocks.cached == 0

    def test_failures_that_repeat_end_the_core_after_every_request_was_told(self) -> None:
        harness, _ = self.failing(2)
        harness.tell(make_submit([65], request_id="a"))
        harness.step()
        harness.tell(make_submit([65], request_id="b"))
        with pytest.raises(CoreFault):
            harness.step()
        assert [name for name, _ in rejected(harness)] == ["a", "b"]

    def test_failures_with_success_between_them_do_not_add_up(self) -> None:
        harness, executor = self.failing(0)
        for number in range(5):
            executor.fail_steps = 1
            harness.tell(make_submit([65], request_id=f"bad{number}"))
            harness.step()
            harness.take(Rejected)
            harness.generate(make_submit([65], request_id=f"good{number}"))

    def test_results_that_do_not_fit_the_plan_are_a_failure(self) -> None:
        class Forgetful(RecordingExecutor):
            def execute(self, plan: object) -> list[object]:  # type: ignore[override]
                return []

        harness = CoreHarness(wrap=Forgetful)  # type: ignore[arg-type]
        harness.tell(make_submit([65]))
        harness.step()
        assert rejected(harness) == [("r", "internal_error")]

    def test_an_import_that_fails_is_computed_here(self) -> None:
        class NoImport(RecordingExecutor):
            def __init__(self, inner: SimExecutor) -> None:
                super().__init__(inner)
                self.import_blocks = self.fail

            def fail(self, blocks: object) -> None:
                raise RuntimeError("no imports today")

        harness = CoreHarness(wrap=NoImport)
        harness.tell(make_submit([65] * 70, mode=Mode.PULL, lease="l"))
        harness.run()
        harness.tell(PullEnded(id="r", ok=True, received=(0, 1, 2)))
        harness.run()
        assert harness.tokens["r", 0] == CoreHarness().generate(make_submit([65] * 70))


class TestEncode:
    def test_embeddings_depend_on_the_image_only(self) -> None:
        harness, other = CoreHarness(), CoreHarness()
        for one in (harness, other):
            one.tell(Encode(id="e", digest=b"d", data=b"image", count=5))
        (mine,), (yours,) = harness.take(Encoded), other.take(Encoded)
        assert mine == yours
        assert len(mine.data) == 5 * 32
        assert len({mine.data[row * 32 : row * 32 + 32] for row in range(5)}) == 5
        assert harness.stats().encoder_runs == 1

    def test_a_model_without_images_refuses_them(self) -> None:
        class Blind(RecordingExecutor):
            def __init__(self, inner: SimExecutor) -> None:
                super().__init__(inner)
                self.encode = self.fail

            def fail(self, data: bytes, count: int) -> bytes:
                raise ValueError

        harness = CoreHarness(wrap=Blind)
        harness.tell(Encode(id="e", digest=b"d", data=b"image", count=5))
        assert rejected(harness) == [("e", "unsupported_parameter")]


def test_an_audit_is_answered_with_a_sample() -> None:
    harness = CoreHarness()
    harness.tell(make_submit([65] * 40, sampling=SamplingParams(max_tokens=50)))
    harness.step()
    harness.tell(Audit(id="a"))
    (result,) = harness.take(AuditResult)
    assert (result.id, result.faults, result.stats.blocks.held) == ("a", (), 2)


def test_every_state_is_reached_and_only_the_last_one_is_final() -> None:
    reached = {state for moves in MOVES.values() for state in moves} | {State.WAITING}
    assert reached == set(State)
    assert [state for state, moves in MOVES.items() if not moves] == [State.FINISHED]
