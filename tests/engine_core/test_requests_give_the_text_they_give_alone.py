"""Continuous batching changes when a request is computed, never what it says."""

from random import Random

import pytest

from fakes.core_harness import CoreHarness, RecordingExecutor, make_submit, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.executor.sim import SimExecutor
from triptych_engine.messages import Cancel, FinishReason, Rejected, Submit

SHARED = [40 + position % 50 for position in range(150)]


def random_submit(random: Random, number: int) -> Submit:
    """A prompt that may share a prefix with others, sampled somehow."""
    prefix = SHARED[: random.choice([0, 32, 70, 128, 150])]
    prompt = prefix + [random.randrange(32, 127) for _ in range(random.randrange(1, 90))]
    sampling = SamplingParams(
        temperature=random.choice([0.0, 0.7, 1.3]),
        top_p=random.choice([1.0, 0.8]),
        top_k=random.choice([0, 5]),
        seed=random.randrange(1000),
        n=random.choice([1, 1, 1, 3]),
        max_tokens=random.randrange(1, 60),
        min_tokens=random.choice([0, 0, 8]),
    )
    return make_submit(prompt, request_id=f"r{number}", sampling=sampling)


def alone(submit: Submit) -> dict[int, list[int]]:
    """What the request says in a core of its own, with room and one large step for the prompt."""
    harness = CoreHarness(sim_config(kv_blocks=128, max_batch_tokens=4096))
    harness.generate(submit)
    return {choice: tokens for (_, choice), tokens in harness.tokens.items()}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kv_blocks", [40, 200], ids=["few blocks", "many blocks"])
def test_64_random_requests_with_cancels_and_deadlines(seed: int, kv_blocks: int) -> None:
    random = Random(seed)
    chunk = random.choice([7, 33, 64, 200])
    harness = CoreHarness(sim_config(kv_blocks=kv_blocks, max_batch_tokens=chunk, max_sequences=12))
    arriving = [random_submit(random, number) for number in range(64)]
    submits = {one.id: one for one in arriving}
    stopped: set[str] = set()
    while arriving or harness.core.num_live:
        for _ in range(random.choice([0, 0, 1, 3])):
            if arriving:
                submit = arriving.pop()
                if random.random() < 0.1:
                    submit = make_submit(
                        submit.token_ids,
                        request_id=submit.id,
                        sampling=submit.sampling,
                        deadline_s=harness.clock.now_s() + random.random(),
                    )
                harness.tell(submit)
        if random.random() < 0.05:
            victim = random.choice(sorted(submits))
            stopped.add(victim)
            harness.tell(Cancel(id=victim, choice=random.choice([None, 0, 1])))
        harness.step()
        harness.clock.advance(0.01)
    assert not harness.take(Rejected)
    harness.check_empty()
    for (request_id, choice), reason in harness.ends.items():
        expected = alone(submits[request_id])[choice]
        tokens = harness.tokens[request_id, choice]
        assert tokens == expected[: len(tokens)]
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert tokens == expected
        else:
            assert reason is FinishReason.DEADLINE or request_id in stopped
    assert set(harness.ends) == {(one.id, choice) for one in submits.values() for choice in range(one.sampling.n)}


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 31, 32, 33, 64, 1000])
def test_the_chunk_size_does_not_show_in_the_text(max_batch_tokens: int) -> None:
    submit = make_submit(SHARED, sampling=SamplingParams(temperature=0.0, max_tokens=40))
    harness = CoreHarness(sim_config(max_batch_tokens=max_batch_tokens))
    assert harness.generate(submit) == alone(submit)[0]


def test_a_step_never_computes_more_than_its_budget() -> None:
    executors: list[RecordingExecutor] = []

    def record(executor: SimExecutor) -> RecordingExecutor:
        executors.append(RecordingExecutor(executor))
        return executors[-1]

    harness = CoreHarness(sim_config(max_batch_tokens=40, max_sequences=8), wrap=record)
    random = Random(5)
    for number in range(20):
        harness.tell(random_submit(random, number))
    harness.run()
    plans = executors[0].plans
    assert max(plan.num_tokens for plan in plans) == 40
    assert max(len(plan.rows) for plan in plans) <= 8


def test_a_long_prompt_delays_running_requests_by_no_step() -> None:
    harness = CoreHarness(sim_config(kv_blocks=200, max_batch_tokens=64))
    harness.tell(make_submit(SHARED[:10], request_id="running", sampling=SamplingParams(max_tokens=60), eos=()))
    harness.step()
    harness.tell(make_submit(SHARED * 13, request_id="intruder"))
    for _ in range(20):
        before = len(harness.tokens["running", 0])
        harness.step()
        assert len(harness.tokens["running", 0]) == before + 1


def test_a_large_request_is_not_starved_by_small_ones_that_keep_coming() -> None:
    harness = CoreHarness(sim_config(kv_blocks=21, max_sequences=8))
    for number in range(8):
        harness.tell(make_submit(SHARED[:20], request_id=f"early{number}", sampling=SamplingParams(max_tokens=50)))
    harness.tell(make_submit([65] * 600, request_id="large", sampling=SamplingParams(max_tokens=2)))
    for number in range(2000):
        harness.tell(make_submit([66] * 20, request_id=f"late{number}", sampling=SamplingParams(max_tokens=50)))
        harness.step(audited=False)
        if ("large", 0) in harness.ends:
            return
    raise AssertionError("the large request never ran")
