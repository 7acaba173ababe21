"""Draws are a function of their arguments; parameters have limits that are checked before anything is allocated."""

from collections import Counter
from inspect import signature
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.errors import BadRequest
from triptych_contract.sampling import LIMITS, SamplingParams, check_range, uniform

seeds = st.integers(-(2**63), 2**63 - 1)
small = st.integers(0, 2**32 - 1)

CELLS = 64
DRAWS = 6400
CHI_SQUARE_LIMIT = 113.5
"""The 99.99 % point of chi-square with 63 degrees of freedom; the draws are fixed, so the test is too."""

PINNED = [0.80618, 0.779812, 0.377346, 0.36913, 0.429313, 0.703446, 0.964093, 0.06172]

STREAMS = {
    "along the positions": lambda i: {"seed": 1, "prompt_index": 0, "choice": 0, "position": i},
    "along the seeds": lambda i: {"seed": i, "prompt_index": 0, "choice": 0, "position": 0},
    "along negative seeds": lambda i: {"seed": -i, "prompt_index": 0, "choice": 0, "position": 3},
    "along the choices": lambda i: {"seed": 5, "prompt_index": 0, "choice": i, "position": 9},
    "along the prompts": lambda i: {"seed": 5, "prompt_index": i, "choice": 0, "position": 9},
    "along the draws": lambda i: {"seed": 5, "prompt_index": 0, "choice": 0, "position": 9, "draw": i},
}


@given(seed=seeds, prompt_index=small, choice=small, position=seeds, draw=small)
def test_a_draw_is_at_least_zero_below_one_and_always_the_same(seed, prompt_index, choice, position, draw):
    arguments = dict(seed=seed, prompt_index=prompt_index, choice=choice, position=position, draw=draw)
    found = uniform(**arguments)
    assert 0.0 <= found < 1.0
    assert found == uniform(**arguments)


def test_the_request_id_takes_no_part():
    assert set(signature(uniform).parameters) == {"seed", "prompt_index", "choice", "position", "draw"}


def test_draws_are_pinned_because_another_version_must_resume_them():
    found = [uniform(seed=s, prompt_index=0, choice=c, position=p) for s, c, p in product((0, -1), (0, 1), (0, 7))]
    assert [round(value, 6) for value in found] == PINNED


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_draws_are_uniform_in_each_argument(stream):
    cells = Counter(int(uniform(**stream(i)) * CELLS) for i in range(DRAWS))
    expected = DRAWS / CELLS
    assert sum((cells[cell] - expected) ** 2 / expected for cell in range(CELLS)) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_neighbouring_draws_do_not_depend_on_each_other(stream):
    values = [uniform(**stream(i)) for i in range(DRAWS + 1)]
    cells = Counter((int(a * 8), int(b * 8)) for a, b in pairwise(values))
    expected = DRAWS / CELLS
    assert sum((cells[cell] - expected) ** 2 / expected for cell in product(range(8), repeat=2)) < CHI_SQUARE_LIMIT


def test_exchanged_arguments_give_other_draws():
    arguments = [(1, 2, 3, 4, 5), (2, 1, 3, 4, 5), (1, 3, 2, 4, 5), (1, 2, 4, 3, 5), (1, 2, 3, 5, 4)]
    names = ("seed", "prompt_index", "choice", "position", "draw")
    assert len({uniform(**dict(zip(names, values, strict=True))) for values in arguments}) == len(arguments)


@pytest.mark.parametrize("name", LIMITS)
def test_both_ends_of_a_range_are_inside_and_all_beyond_names_the_parameter(name):
    low, high = LIMITS[name]
    check_range(name, low)
    check_range(name, high)
    for value in (low - 1, high + 1, float("nan"), float("inf"), float("-inf")):
        with pytest.raises(BadRequest) as caught:
            check_range(name, value)
        assert caught.value.param == name


def test_a_seed_one_past_64_bits_is_not_rounded_into_the_range():
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(BadRequest, match="between -9223372036854775808 and 9223372036854775807"):
            check_range("seed", seed)


@pytest.mark.parametrize(
    ("changes", "greedy"),
    [({}, False), ({"temperature": 0.0}, True), ({"top_k": 1}, True), ({"top_k": 2}, False), ({"top_p": 0.0}, False)],
)
def test_temperature_zero_and_a_single_candidate_are_greedy(changes, greedy):
    assert SamplingParams(**changes).greedy is greedy
