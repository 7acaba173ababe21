"""The sampler against an oracle written over sorted lists, and against the exact distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.sampling import uniform
from triptych_engine.executor.base import SampleSpec
from triptych_engine.sample.keep import kept_tokens
from triptych_engine.sample.sampler import sample

pytestmark = pytest.mark.torch


def target(logits: list[float], spec: SampleSpec) -> list[float]:
    """Probabilities after temperature and cuts, token by token, in float64."""
    heat = [value / spec.temperature for value in logits]
    for token in spec.banned:
        heat[token] = -math.inf
    top = max(heat)
    weights = [math.exp(value - top) for value in heat]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    if spec.top_k > 0:
        order = order[: spec.top_k]
    total = sum(weights[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        if kept and mass >= spec.top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    kept = [token for token in kept if weights[token] >= spec.min_p * max(weights)]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def draw(probabilities: list[float], u: float) -> int:
    """The first token whose cumulative probability passes u."""
    mass = 0.0
    last = 0
    for token, probability in enumerate(probabilities):
        mass += probability
        if probability > 0:
            last = token
            if mass > u:
                return token
    return last


specs = st.builds(
    SampleSpec,
    temperature=st.floats(0.3, 2.0),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    top_k=st.sampled_from([0, 1, 2, 5, 40]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 5000),
    choice=st.integers(0, 15),
    banned=st.sampled_from([(), (3,), (0, 7)]),
)


def random_logits(seed: int, rows: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2


class TestTheDraw:
    @given(rows=st.lists(specs, min_size=1, max_size=6), seed=st.integers(0, 1000))
    def test_each_row_is_the_inverse_cdf_of_its_one_uniform(self, rows: list[SampleSpec], seed: int) -> None:
        logits = random_logits(seed, len(rows), 64)
        for choice, row, spec in zip(sample(logits, rows), logits.tolist(), rows, strict=True):
            u = uniform(seed=spec.seed, prompt_index=0, choice=spec.choice, position=spec.position)
            assert choice.token_id == draw(target(row, spec), u)

    @given(spec=specs, seed=st.integers(0, 1000))
    def test_a_row_does_not_depend_on_the_rows_beside_it(self, spec: SampleSpec, seed: int) -> None:
        logits = random_logits(seed, 5, 600, torch.float32)
        alone = sample(logits[2:3], [spec])[0]
        others = [SampleSpec(temperature=0.7, top_p=0.9, seed=at) for at in range(4)]
        assert sample(logits, [*others[:2], spec, *others[2:]])[2] == alone

    @pytest.mark.parametrize(
        "spec",
        [
            SampleSpec(temperature=1.0),
            SampleSpec(temperature=0.7, top_k=8),
            SampleSpec(temperature=1.3, top_p=0.8),
            SampleSpec(temperature=1.0, min_p=0.1),
        ],
        ids=["plain", "top_k", "top_p", "min_p"],
    )
    def test_frequencies_pass_a_chi_square_test(self, spec: SampleSpec) -> None:
        count, vocabulary = 8000, 24
        logits = random_logits(1, 1, vocabulary, torch.float32)
        wanted = np.array(target(logits[0].tolist(), spec)) * count
        rows = [
            SampleSpec(temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k, min_p=spec.min_p, position=at)
            for at in range(count)
        ]
        found = np.bincount(
            [choice.token_id for choice in sample(logits.expand(count, -1), rows)], minlength=vocabulary
        )
        assert not found[wanted == 0].any()
        used = wanted > 0
        statistic = float(((found[used] - wanted[used]) ** 2 / wanted[used]).sum())
        freedom = int(used.sum()) - 1
        # Wilson and Hilferty: the cube root of chi-square over its freedom is nearly normal; 2.58 is p = 0.005.
        z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
        assert z < 2.58

    def test_greedy_takes_the_best_token_that_is_not_banned(self) -> None:
        logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
        assert sample(logits, [SampleSpec()])[0].token_id == 1
        assert sample(logits, [SampleSpec(banned=(1,))])[0].token_id == 2
        assert sample(logits, [SampleSpec(temperature=1.5, top_k=1)])[0].token_id == 1
        assert logits[0, 1] == 3.0, "the model's logits are not touched"

    def test_the_smallest_temperatures_are_greedy_and_never_overflow(self) -> None:
        logits = torch.tensor([[80.0, -80.0, 81.0]])
        assert sample(logits, [SampleSpec(temperature=1e-300, seed=4)])[0].token_id == 2


class TestTheNucleus:
    @given(
        seed=st.integers(0, 10_000),
        size=st.sampled_from([3, 50, 257, 6000]),
        spread=st.sampled_from([0.0, 0.01, 1.0, 4.0]),
        top_p=st.floats(0.0, 0.999),
        dtype=st.sampled_from([torch.float32, torch.float64]),
    )
    def test_is_the_smallest_set_of_best_tokens_that_reaches_top_p(
        self, seed: int, size: int, spread: float, top_p: float, dtype: torch.dtype
    ) -> None:
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        probabilities = torch.softmax(noise * spread, dim=0)
        kept = kept_tokens(probabilities, top_k=0, top_p=top_p, min_p=0.0)
        assert kept is not None
        assert kept.tolist() == sorted(set(kept.tolist()))
        inside = probabilities[kept].double()
        left_out = np.delete(probabilities.numpy(), kept.numpy())
        slack = 1e-6 if dtype == torch.float32 else 1e-12
        assert float(inside.sum()) >= top_p - slack
        assert float(inside.sum() - inside.min()) < top_p + slack or len(kept) == 1
        assert not len(left_out) or left_out.max() <= float(inside.min())


class TestLogprobs:
    def test_are_the_models_own_before_temperature_and_cuts(self) -> None:
        logits = random_logits(5, 1, 40, torch.float32)
        spec = SampleSpec(temperature=0.5, top_k=3, banned=(int(logits.argmax()),), logprobs=4, seed=9)
        choice = sample(logits, [spec])[0]
        logs = torch.log_softmax(logits[0], dim=-1)
        report = choice.logprobs
        assert report is not None
        assert report.chosen == pytest.approx(float(logs[choice.token_id]))
        assert report.rank == 1 + int((logs > logs[choice.token_id]).sum()) > 1
        assert [token for token, _ in report.top] == logs.topk(4).indices.tolist()

    def test_are_only_reported_where_asked_for(self) -> None:
        choices = sample(random_logits(6, 3, 20), [SampleSpec(), SampleSpec(logprobs=0), SampleSpec(logprobs=30)])
        assert choices[0].logprobs is None
        assert choices[1].logprobs is not None
        assert choices[1].logprobs.top == ()
        assert choices[2].logprobs is not None
        assert len(choices[2].logprobs.top) == 20
