"""The real scheduler, blocks and prefix cache over the PyTorch executor change nothing in what a request says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies  # noqa: F401  # loads the hypothesis profile
from fakes.core_harness import hand_over, make_submit
from fakes.oracle_models import oracle_greedy, prompt
from fakes.torch_core import TorchCore
from fakes.torch_runner import BLOCK, load
from triptych_contract.sampling import SamplingParams
from triptych_engine.executor.torch import TorchExecutor
from triptych_engine.messages import Submit

pytestmark = pytest.mark.torch
Oracle = Callable[[str], tuple[Any, Path]]
COMMON = prompt(50, 2 * BLOCK)
PROMPTS = [COMMON, COMMON + prompt(51, 17), COMMON + prompt(52, 40), prompt(53, 5), prompt(54, 100), COMMON[:40]]
"""Some share whole blocks, one is a prefix of others and ends on a block's edge."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.1, top_p=0.9, seed=77, max_tokens=10, ignore_eos=True)


def request(index: int, sampling: SamplingParams, request_id: str = "r") -> Submit:
    return make_submit(PROMPTS[index], request_id=request_id, sampling=sampling, eos=(1,))


@pytest.fixture(scope="module")
def executors(oracle: Oracle) -> dict[str, TorchExecutor]:
    return {kind: load(oracle(kind)[1], dtype="float64", blocks=48) for kind in ("qwen3", "qwen2", "llama3-rope")}


@pytest.fixture(scope="module")
def alone(executors: dict[str, TorchExecutor]) -> dict[tuple[int, float], list[int]]:
    """What each prompt says in a core of its own, with nothing cached."""
    return {
        (index, sampling.temperature): list(TorchCore(executors["qwen3"]).generate(request(index, sampling)))
        for index in range(len(PROMPTS))
        for sampling in (GREEDY, DRAWN)
    }


@settings(max_examples=10)
@given(
    wanted=st.lists(
        st.tuples(st.integers(0, len(PROMPTS) - 1), st.sampled_from([GREEDY, DRAWN]), st.integers(0, 6)),
        min_size=2,
        max_size=7,
    ),
    max_batch_tokens=st.sampled_from([9, 40, 512]),
)
def test_requests_say_alone_what_they_say_together(
    executors: dict[str, TorchExecutor],
    alone: dict[tuple[int, float], list[int]],
    wanted: list[tuple[int, SamplingParams, int]],
    max_batch_tokens: int,
) -> None:
    core = TorchCore(executors["qwen3"], max_batch_tokens=max_batch_tokens)
    for at, (index, sampling, steps_before) in enumerate(wanted):
        for _ in range(steps_before):
            core.step()
        core.tell(request(index, sampling, f"r{at}"))
    core.run()
    for at, (index, sampling, _) in enumerate(wanted):
        assert core.tokens[f"r{at}", 0] == alone[index, sampling.temperature]
    core.check_empty()


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama3-rope"])
def test_the_tokens_are_those_of_transformers_with_chunks_and_prefix_hits(
    kind: str, oracle: Oracle, executors: dict[str, TorchExecutor]
) -> None:
    core = TorchCore(executors[kind], max_batch_tokens=33)
    for at, index in enumerate((0, 1, 2)):
        expected, _ = oracle_greedy(oracle(kind)[0], PROMPTS[index], 10)
        assert core.generate(request(index, GREEDY, f"r{at}")) == expected
    assert core.stats().prefix_hits > 0


@pytest.mark.parametrize("index", [0, 2, 3, 4])
def test_a_hand_over_computes_one_prompt_token_and_says_the_same(
    index: int, oracle: Oracle, executors: dict[str, TorchExecutor], alone: dict[tuple[int, float], list[int]]
) -> None:
    producer = TorchCore(load(oracle("qwen3")[1], dtype="float64", blocks=48))
    consumer = TorchCore(executors["qwen3"])
    assert hand_over(producer, consumer, request(index, GREEDY)) == alone[index, 0.0]
    assert consumer.stats().tokens_recomputed == 1
    producer.check_empty()
    consumer.check_empty()


def test_choices_of_one_request_fork_a_partial_block(
    executors: dict[str, TorchExecutor], alone: dict[tuple[int, float], list[int]]
) -> None:
    core = TorchCore(executors["qwen3"])
    sampling = SamplingParams(temperature=1.1, top_p=0.9, seed=77, max_tokens=10, ignore_eos=True, n=3)
    core.tell(request(1, sampling))
    core.run()
    assert core.tokens["r", 0] == alone[1, 1.1]
    assert len({tuple(core.tokens["r", choice]) for choice in range(3)}) == 3
    core.check_empty()
