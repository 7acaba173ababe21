"""How a choice ends: stop tokens, lengths, deadlines, cancels; and how several choices share one prompt."""

import gc

import pytest

from fakes.core_harness import EOS, CoreHarness, RecordingExecutor, make_submit, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.request import Request
from triptych_engine.executor.sim import SimExecutor
from triptych_engine.messages import Cancel, Deltas, FinishReason, Mode, Rejected

PROMPT = [36 + position % 80 for position in range(70)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=300)


def said(sampling: SamplingParams = GREEDY, *, eos: tuple[int, ...] = (EOS,)) -> tuple[list[int], FinishReason]:
    harness = CoreHarness(sim_config(kv_blocks=200))
    tokens = harness.generate(make_submit(PROMPT, sampling=sampling, eos=eos))
    harness.check_empty()
    return tokens, harness.ends["r", 0]


class TestStopTokens:
    def test_the_end_of_sequence_ends_and_is_told(self) -> None:
        tokens, reason = said()
        assert (tokens[-1], reason) == (EOS, FinishReason.STOP)
        assert EOS not in tokens[:-1]

    def test_ignore_eos_goes_on(self) -> None:
        tokens, reason = said(SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True))
        assert (len(tokens), reason) == (300, FinishReason.LENGTH)
        assert EOS in tokens

    def test_a_stop_token_of_the_client_ends_and_is_told(self) -> None:
        free, _ = said()
        tokens, reason = said(SamplingParams(temperature=0.0, max_tokens=300, stop_token_ids=(free[5],)))
        assert (tokens, reason) == (free[: free.index(free[5]) + 1], FinishReason.STOP)

    def test_no_stop_token_comes_before_min_tokens(self) -> None:
        free, _ = said()
        natural = len(free)
        sampling = SamplingParams(temperature=0.0, max_tokens=600, min_tokens=natural + 3)
        tokens, _ = said(sampling)
        assert EOS not in tokens[: natural + 3]
        assert tokens[: natural - 1] == free[:-1]

    def test_min_tokens_bans_the_clients_stop_tokens_too(self) -> None:
        free, _ = said()
        sampling = SamplingParams(temperature=0.0, max_tokens=300, min_tokens=4, stop_token_ids=tuple(free[:3]))
        tokens, _ = said(sampling)
        assert not set(tokens[:4]) & set(free[:3])

    def test_min_tokens_of_all_tokens_leaves_something_to_say(self) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=5, min_tokens=5, stop_token_ids=tuple(range(32, 90)))
        tokens, reason = said(sampling)
        assert len(tokens) == 5
        assert reason is FinishReason.LENGTH
        assert min(tokens) >= 90

    def test_stop_tokens_that_leave_nothing_to_say_end_nothing_before_min_tokens(self) -> None:
        everything = tuple(range(32, 127))
        sampling = SamplingParams(temperature=0.0, max_tokens=8, min_tokens=5, stop_token_ids=everything)
        tokens, reason = said(sampling)
        assert (len(tokens), reason) == (6, FinishReason.STOP)


class TestLengths:
    @pytest.mark.parametrize("max_tokens", [1, 2, 33])
    def test_max_tokens(self, max_tokens: int) -> None:
        tokens, reason = said(SamplingParams(temperature=0.0, max_tokens=max_tokens), eos=())
        assert (len(tokens), reason) == (max_tokens, FinishReason.LENGTH)

    def test_no_tokens_at_all(self) -> None:
        harness = CoreHarness()
        assert harness.generate(make_submit(PROMPT, sampling=SamplingParams(max_tokens=0, n=2))) == []
        assert harness.ends == {("r", 0): FinishReason.LENGTH, ("r", 1): FinishReason.LENGTH}
        assert harness.stats().step == 0
        harness.check_empty()

    def test_an_output_ends_where_the_context_ends(self) -> None:
        harness = CoreHarness(sim_config(max_context=100))
        assert len(harness.generate(make_submit(PROMPT, sampling=GREEDY, eos=()))) == 30
        assert harness.ends["r", 0] is FinishReason.LENGTH

    def test_an_output_ends_where_the_pool_ends(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=5))
        assert len(harness.generate(make_submit(PROMPT, sampling=GREEDY, eos=()))) == 4 * 32 - 70
        harness.check_empty()


class TestDeadlinesAndCancels:
    def test_a_deadline_ends_running_and_waiting_requests_at_the_next_step(self) -> None:
        harness = CoreHarness(sim_config(max_sequences=1))
        for name in ("running", "waiting"):
            harness.tell(make_submit(PROMPT, request_id=name, deadline_s=105.0, eos=(), sampling=GREEDY))
        harness.step()
        assert harness.core.next_deadline_s == 105.0
        harness.clock.advance(5.0)
        assert not harness.step()
        assert set(harness.ends.values()) == {FinishReason.DEADLINE}
        assert harness.core.next_deadline_s is None
        harness.check_empty()

    def test_a_finished_request_leaves_no_deadline(self) -> None:
        harness = CoreHarness()
        harness.generate(make_submit(PROMPT, deadline_s=500.0))
        assert harness.core.next_deadline_s is None

    def test_a_cancel_frees_the_blocks_before_the_next_step(self) -> None:
        harness = CoreHarness()
        harness.tell(make_submit(PROMPT, sampling=GREEDY))
        harness.step()
        harness.tell(Cancel(id="r"))
        harness.check_empty()
        assert not harness.step()
        assert harness.ends["r", 0] is FinishReason.CANCELLED

    def test_a_prefill_leg_can_be_cancelled_while_it_computes(self) -> None:
        harness = CoreHarness(sim_config(max_batch_tokens=16))
        harness.tell(make_submit(PROMPT, mode=Mode.PREFILL, lease="l"))
        harness.step()
        harness.tell(Cancel(id="r"))
        harness.check_empty()

    def test_cancels_of_the_unknown_are_ignored(self) -> None:
        harness = CoreHarness()
        harness.tell(Cancel(id="nobody"), Cancel(id="nobody", choice=3))
        harness.generate(make_submit(PROMPT))
        harness.tell(Cancel(id="r"))
        assert len(harness.ends) == 1

    def test_many_requests_with_far_deadlines_leave_no_memory_behind(self) -> None:
        harness = CoreHarness()
        for number in range(500):
            submit = make_submit([65], request_id=str(number), deadline_s=1e6, sampling=SamplingParams(max_tokens=1))
            harness.tell(submit)
            harness.step(audited=False)
        harness.run()
        harness.check_empty()
        assert sum(type(one) is Request for one in gc.get_objects()) < 200


class TestChoices:
    SAMPLING = SamplingParams(seed=7, n=4, max_tokens=30)

    @pytest.mark.parametrize("length", [1, 32, 64, 70], ids="{} tokens".format)
    def test_each_choice_says_what_it_says_without_the_others(self, length: int) -> None:
        together = CoreHarness()
        together.generate(make_submit(PROMPT[:length], sampling=self.SAMPLING, eos=()))
        together.check_empty()
        texts = {tuple(tokens) for tokens in together.tokens.values()}
        assert len(texts) == 4
        for choice in range(4):
            alone = CoreHarness(sim_config(max_batch_tokens=16))
            alone.tell(make_submit(PROMPT[:length], sampling=self.SAMPLING, eos=()))
            for other in set(range(4)) - {choice}:
                alone.tell(Cancel(id="r", choice=other))
            alone.run()
            assert alone.tokens["r", choice] == together.tokens["r", choice]
            alone.check_empty()

    def test_the_prompt_is_computed_once(self) -> None:
        harness = CoreHarness()
        harness.generate(make_submit(PROMPT, sampling=self.SAMPLING))
        assert harness.stats().prompt_tokens == len(PROMPT)

    def test_choices_that_find_no_room_wait(self) -> None:
        wide, narrow = CoreHarness(), CoreHarness(sim_config(max_sequences=2))
        for harness in (wide, narrow):
            harness.generate(make_submit(PROMPT, sampling=self.SAMPLING))
            harness.check_empty()
        assert wide.tokens == narrow.tokens

    def test_one_choice_can_be_cancelled_while_the_others_go_on(self) -> None:
        free, harness = CoreHarness(), CoreHarness()
        free.generate(make_submit(PROMPT, sampling=self.SAMPLING, eos=()))
        harness.tell(make_submit(PROMPT, sampling=self.SAMPLING, eos=()))
        for _ in range(5):
            harness.step()
        harness.tell(Cancel(id="r", choice=0), Cancel(id="r", choice=0), Cancel(id="r", choice=9))
        harness.run()
        assert harness.ends["r", 0] is FinishReason.CANCELLED
        assert [harness.tokens["r", choice] for choice in (1, 2, 3)] == [
            free.tokens["r", choice] for choice in (1, 2, 3)
        ]
        harness.check_empty()

    def test_a_failing_copy_fails_the_request_cleanly(self) -> None:
        class NoCopies(RecordingExecutor):
            def __init__(self, inner: SimExecutor) -> None:
                super().__init__(inner)
                self.copy_blocks = self.fail

            def fail(self, pairs: object) -> None:
                raise RuntimeError("no copies today")

        harness = CoreHarness(wrap=NoCopies)
        harness.tell(make_submit(PROMPT, sampling=self.SAMPLING))
        harness.run()
        assert [one.code for one in harness.take(Rejected)] == ["internal_error"]
        harness.check_empty()


def test_tokens_of_one_step_are_told_in_one_message() -> None:
    harness = CoreHarness()
    for number in range(5):
        harness.tell(make_submit(PROMPT, request_id=str(number)))
    harness.step()
    (deltas,) = harness.take(Deltas)
    assert [one.id for one in deltas.items] == ["0", "1", "2", "3", "4"]
