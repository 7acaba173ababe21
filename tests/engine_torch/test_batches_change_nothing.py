"""A sequence says the same alone, in any mix of rows, in any chunks, behind shared blocks and after a hand-over.

In float64 always; in float32 up to near ties, which these seeds do not meet.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies  # noqa: F401  # loads the hypothesis profile
from fakes.oracle_models import PROMPT_TOKENS, prompt
from fakes.torch_runner import BLOCK, Lane, Runner, load, rebind
from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.executor.torch import TorchExecutor

pytestmark = pytest.mark.torch
Oracle = Callable[[str], tuple[Any, Path]]
LENGTHS = (100, 33, 64, 1, 31)
OUTPUT = 12


def run_mixed(runner: Runner, lanes: list[Lane], data: st.DataObject) -> None:
    """Drawn shares of each sequence in each step until all have their output."""
    while unfinished := [lane for lane in lanes if len(lane.out) < OUTPUT]:
        chosen = data.draw(st.lists(st.sampled_from(unfinished), min_size=1, unique_by=id))
        shares = []
        for lane in chosen:
            lacking = len(lane.tokens) - lane.computed
            # Mostly all of it: a prompt computed one token at a time makes for a dull hour.
            count = lacking if data.draw(st.booleans()) else data.draw(st.integers(1, lacking))
            shares.append((lane, count))
        runner.step(shares)


@pytest.fixture(scope="module")
def exact(oracle: Oracle) -> tuple[TorchExecutor, dict[int, list[int]]]:
    """A float64 executor, and what each prompt says alone."""
    executor = load(oracle("qwen3")[1], dtype="float64")
    runner = Runner(executor)
    return executor, {
        length: list(runner.run_alone(runner.add(prompt(length, length), room=OUTPUT), OUTPUT)) for length in LENGTHS
    }


class TestMixes:
    @settings(max_examples=12)
    @given(data=st.data())
    def test_any_mix_of_rows_and_chunks_gives_the_tokens_of_running_alone(
        self, exact: tuple[TorchExecutor, dict[int, list[int]]], data: st.DataObject
    ) -> None:
        executor, alone = exact
        rebind(executor)
        runner = Runner(executor)
        lengths = data.draw(st.lists(st.sampled_from(LENGTHS), min_size=2, max_size=6))
        lanes = [runner.add(prompt(length, length), room=OUTPUT) for length in lengths]
        run_mixed(runner, lanes, data)
        assert [lane.out[:OUTPUT] for lane in lanes] == [alone[length] for length in lengths]

    @pytest.mark.parametrize("kind", ["qwen2-tied", "llama3-rope"])
    def test_a_full_batch_in_float32_gives_the_tokens_of_running_alone(self, kind: str, oracle: Oracle) -> None:
        executor = load(oracle(kind)[1])
        runner = Runner(executor)
        alone = [runner.run_alone(runner.add(prompt(seed, 40 + 9 * seed), room=24), 24) for seed in range(6)]
        rebind(executor)
        together = Runner(executor)
        lanes = [together.add(prompt(seed, 40 + 9 * seed), room=24) for seed in range(6)]
        while any(len(lane.out) < 24 for lane in lanes):
            together.step([(lane, len(lane.tokens) - lane.computed) for lane in lanes])
        assert [lane.out for lane in lanes] == alone


class TestPrefixHits:
    def test_sequences_that_share_blocks_say_what_they_say_alone(self, oracle: Oracle) -> None:
        executor = load(oracle("qwen2")[1], dtype="float64")
        runner = Runner(executor)
        common = prompt(5, 2 * BLOCK)
        tails = [prompt(6, 20), prompt(7, 45)]
        alone = [runner.run_alone(runner.add(common + tail, room=OUTPUT), OUTPUT) for tail in tails]
        owner = runner.add(common, room=0)
        runner.step([(owner, len(common))])
        users = [runner.add(common + tail, room=OUTPUT, shared=owner.table[:2], computed=len(common)) for tail in tails]
        while any(len(user.out) < OUTPUT for user in users):
            runner.step([(user, len(user.tokens) - user.computed) for user in users])
        assert [user.out for user in users] == alone

    def test_recomputing_the_last_position_writes_nothing_into_a_shared_block(self, oracle: Oracle) -> None:
        executor = load(oracle("qwen3")[1], dtype="float64")
        pool = rebind(executor)
        runner = Runner(executor)
        tokens = prompt(8, 3 * BLOCK)
        first = runner.add(tokens, room=OUTPUT)
        wanted = list(runner.run_alone(first, OUTPUT))
        block_bytes = executor.info.layout.block_bytes
        before = bytes(pool[: (first.table[2] + 1) * block_bytes])
        again = runner.add(tokens, room=OUTPUT, shared=first.table[:3], computed=len(tokens) - 1)
        assert runner.run_alone(again, OUTPUT) == wanted
        assert bytes(pool[: len(before)]) == before


class TestHandOver:
    @pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama3-rope"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_blocks_moved_byte_for_byte_go_on_as_if_computed_here(self, kind: str, dtype: str, oracle: Oracle) -> None:
        folder = oracle(kind)[1]
        producer, consumer = load(folder, dtype=dtype), load(folder, dtype=dtype)
        assert producer.info.fingerprint == consumer.info.fingerprint
        there, here = rebind(producer), rebind(consumer)
        tokens = prompt(9, PROMPT_TOKENS)
        source = Runner(producer)
        computed = source.add(tokens, room=OUTPUT)
        source.step([(computed, len(tokens))])
        wanted = list(source.run_alone(computed, OUTPUT))

        sink = Runner(consumer)
        sink.blocks(5)  # other physical blocks than at the producer
        moved = sink.add(tokens, room=OUTPUT, computed=len(tokens) - 1)
        count = -(-len(tokens) // BLOCK)
        size = producer.info.layout.block_bytes
        producer.export_blocks(computed.table[:count])
        for mine, theirs in zip(moved.table[:count], computed.table[:count], strict=True):
            here[mine * size : (mine + 1) * size] = there[theirs * size : (theirs + 1) * size]
        consumer.import_blocks(moved.table[:count])
        assert sink.run_alone(moved, OUTPUT) == wanted

    def test_models_of_other_weights_have_other_fingerprints(self, oracle: Oracle) -> None:
        prints = {load(oracle(kind)[1]).info.fingerprint for kind in ("qwen3", "qwen2", "llama3-rope")}
        assert len(prints) == 3
        assert load(oracle("qwen3")[1], dtype="float64").info.fingerprint not in prints


class TestBlocks:
    def test_a_fork_of_a_partial_block_goes_on_by_itself(self, oracle: Oracle) -> None:
        executor = load(oracle("qwen3")[1], dtype="float64")
        runner = Runner(executor)
        tokens = prompt(10, BLOCK + 10)
        first = runner.add(tokens, room=OUTPUT)
        runner.step([(first, len(tokens) - 1)])
        fork = runner.add(tokens, room=OUTPUT, shared=first.table[:1], computed=len(tokens) - 1)
        executor.copy_blocks([(first.table[1], fork.table[1])])
        assert runner.run_alone(fork, OUTPUT) == runner.run_alone(first, OUTPUT)

    def test_bytes_that_are_no_numbers_beyond_the_context_do_no_harm(self, oracle: Oracle) -> None:
        executor = load(oracle("qwen3")[1])
        pool = rebind(executor)
        runner = Runner(executor)
        wanted = list(runner.run_alone(runner.add(prompt(11, 40), room=OUTPUT), OUTPUT))
        pool[:] = b"\xff" * len(pool)  # every element is NaN
        runner = Runner(executor)
        lanes = [runner.add(prompt(11, 40), room=OUTPUT), runner.add(prompt(12, 70), room=OUTPUT)]
        while any(len(lane.out) < OUTPUT for lane in lanes):
            runner.step([(lane, len(lane.tokens) - lane.computed) for lane in lanes])
        assert lanes[0].out == wanted

    def test_a_row_that_its_blocks_do_not_cover_is_refused(self, oracle: Oracle) -> None:
        executor = load(oracle("qwen3")[1])
        row = PlanRow(0, [1] * (BLOCK + 1), 0, [1], 0, SampleSpec())
        with pytest.raises(ValueError, match="33 tokens, 1 blocks"):
            executor.execute(StepPlan((row,)))
