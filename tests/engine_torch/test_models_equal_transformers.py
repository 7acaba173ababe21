"""Every family against transformers on models where every part shows, and proof that faults would be seen."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.oracle_models import KINDS, PROMPT_TOKENS, oracle_greedy, oracle_logits, prompt
from fakes.torch_runner import BLOCK, Runner, Scratch, load, load_model
from triptych_engine.model.config import ModelConfig, Rope, read_config
from triptych_engine.model.load import load_decoder
from triptych_engine.model.tensors import find_tensors
from triptych_engine.ops.cpu import CpuOps

pytestmark = pytest.mark.torch
Oracle = Callable[[str], tuple[Any, Path]]
TOLERANCE = 1e-4
"""Of logits, in standard deviations of the reference's."""
NEAR_TIE = 1e-3
"""Below this gap between the two best logits float32 may choose either."""


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference in standard deviations of the reference."""
    return float((found - wanted).abs().max() / wanted.std())


def agree(found: list[int], wanted: list[int], logits: torch.Tensor) -> bool:
    """Equal up to the first near tie of the reference; there, one of its two best."""
    for mine, theirs, row in zip(found, wanted, logits, strict=True):
        if mine != theirs:
            best = row.topk(2)
            return float(best.values[0] - best.values[1]) < NEAR_TIE and mine in best.indices.tolist()
    return True


class TestExactness:
    @pytest.mark.parametrize("kind", KINDS)
    def test_prefill_logits_and_32_cached_steps_are_those_of_transformers(self, kind: str, oracle: Oracle) -> None:
        model, folder = oracle(kind)
        tokens = prompt(1)
        following, step_logits = oracle_greedy(model, tokens, 33)
        scratch = Scratch(load_model(folder))
        assert distance(scratch.logits(tokens), oracle_logits(model, tokens)) < TOLERANCE
        for index in range(32):
            assert distance(scratch.logits([following[index]])[0], step_logits[index + 1]) < TOLERANCE

    @pytest.mark.parametrize("kind", KINDS)
    def test_64_greedy_tokens_are_those_of_transformers(self, kind: str, oracle: Oracle) -> None:
        model, folder = oracle(kind)
        runner = Runner(load(folder))
        for seed in (1, 2):
            wanted, logits = oracle_greedy(model, prompt(seed), 64)
            assert len(set(wanted)) > 16, "an oracle that repeats itself proves nothing"
            assert agree(runner.run_alone(runner.add(prompt(seed), room=64), 64), wanted, logits)

    @pytest.mark.parametrize("chunk", [1, 7, 32, 33])
    def test_chunks_of_any_size_give_the_same_logits(self, chunk: int, oracle: Oracle) -> None:
        model, folder = oracle("llama3-rope")
        tokens = prompt(3)
        scratch = Scratch(load_model(folder))
        parts = [scratch.logits(tokens[first : first + chunk]) for first in range(0, len(tokens), chunk)]
        assert distance(torch.cat(parts), oracle_logits(model, tokens)) < TOLERANCE

    def test_a_prompt_longer_than_the_query_chunk_is_exact(self, oracle: Oracle) -> None:
        model, folder = oracle("qwen3")
        tokens = prompt(4, 250)
        assert distance(Scratch(load_model(folder)).logits(tokens), oracle_logits(model, tokens)) < TOLERANCE

    def test_float64_agrees_as_far_as_the_float32_norms_of_transformers_let_it(self, oracle: Oracle) -> None:
        model, folder = oracle("qwen2")
        found = Scratch(load_model(folder, dtype=torch.float64)).logits(prompt(1))
        assert distance(found, oracle_logits(model, prompt(1)).double()) < TOLERANCE

    def test_bfloat16_runs_and_its_agreement_is_reported(
        self, oracle: Oracle, record_property: Callable[[str, object], None]
    ) -> None:
        model, folder = oracle("qwen3")
        wanted, _ = oracle_greedy(model, prompt(1), 64)
        runner = Runner(load(folder, dtype="bfloat16"))
        found = runner.run_alone(runner.add(prompt(1), room=64), 64)
        same = next((at for at, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1]), 64)
        record_property("bfloat16_tokens_before_the_first_difference", same)
        assert len(found) == 64


class TestFaultsWouldBeSeen:
    """The same comparison must fail for models with one thing wrong; otherwise the tests above prove nothing."""

    def mutant_distance(self, oracle: Oracle, kind: str, change: Callable[[ModelConfig], ModelConfig]) -> float:
        model, folder = oracle(kind)
        config = read_config(folder)
        mutated = change(config)
        places = {
            name: place
            for name, place in find_tensors(folder).items()
            if mutated.qkv_bias or not name.endswith(".bias")
        }
        decoder = load_decoder(
            config=mutated,
            places=places,
            ops=CpuOps(dtype=torch.float32),
            max_context=256,
            progress=lambda percent, text: None,
        )
        return distance(Scratch(decoder).logits(prompt(1)), oracle_logits(model, prompt(1)))

    def test_rope_scaling_off(self, oracle: Oracle) -> None:
        plain = Rope(theta=10_000.0)
        found = self.mutant_distance(oracle, "llama3-rope", lambda config: dataclasses.replace(config, rope=plain))
        assert found > 10 * TOLERANCE

    def test_bias_off(self, oracle: Oracle) -> None:
        found = self.mutant_distance(oracle, "qwen2", lambda config: dataclasses.replace(config, qkv_bias=False))
        assert found > 10 * TOLERANCE

    def test_another_eps(self, oracle: Oracle) -> None:
        found = self.mutant_distance(oracle, "qwen3", lambda config: dataclasses.replace(config, norm_eps=1e-3))
        assert found > 10 * TOLERANCE

    @pytest.mark.parametrize("fault", ["swapped", "garbage"])
    def test_one_wrong_block(self, fault: str, oracle: Oracle) -> None:
        model, folder = oracle("qwen3")
        following, step_logits = oracle_greedy(model, prompt(1), 8)
        scratch = Scratch(load_model(folder))
        scratch.logits(prompt(1))
        assert PROMPT_TOKENS >= 3 * BLOCK
        if fault == "swapped":
            # A full block and the tail: keys carry their position, so two full blocks may trade places unseen.
            scratch.pool[[2, 4]] = scratch.pool[[4, 2]].clone()
        else:
            scratch.pool[2] = torch.randn_like(scratch.pool[2])
        found = torch.cat([scratch.logits([token]) for token in following[:7]])
        assert distance(found, step_logits[1:]) > 100 * TOLERANCE
        assert found.argmax(-1).tolist() != following[1:]
