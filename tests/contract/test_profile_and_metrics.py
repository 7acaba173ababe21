"""The step profile predicts in one direction; the metric table is sound Prometheus."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.clock import ManualClock, SystemClock
from triptych_contract.metrics import ENGINE, OPERATOR, ROUTER, Kind
from triptych_contract.profile import StepProfile, decode_step_seconds, prefill_seconds, step_seconds

METRICS = (*ENGINE, *ROUTER, *OPERATOR)
counts = st.integers(0, 10**6)
UNIT = StepProfile(base_s=1, prefill_token_s=10, prefill_context_s=100, sequence_s=1000, context_token_s=10_000)


def test_the_step_time_is_the_formula_of_the_docstring():
    assert step_seconds(UNIT, prefill_tokens=2, running=3, context_tokens=5) == 1 + 20 + 1000 + 3000 + 50_000
    assert prefill_seconds(UNIT, 10, 4) == step_seconds(UNIT, prefill_tokens=6, running=0, context_tokens=7)
    assert decode_step_seconds(UNIT, 3, 5) == step_seconds(UNIT, prefill_tokens=0, running=3, context_tokens=5)


@given(prompt=counts, cached=counts, running=counts, context=counts, more=st.integers(1, 1000))
def test_more_work_never_takes_less_time_and_no_work_takes_some(prompt, cached, running, context, more):
    prior = StepProfile()
    assert prefill_seconds(prior, prompt + more, cached) >= prefill_seconds(prior, prompt, cached) > 0
    assert decode_step_seconds(prior, running + more, context) > decode_step_seconds(prior, running, context) > 0
    assert decode_step_seconds(prior, running, context + more) > decode_step_seconds(prior, running, context)


@given(prompt=counts, cached=counts)
def test_a_longer_cached_prefix_never_makes_the_same_prompt_dearer(prompt, cached):
    cached = min(cached, max(0, prompt - 1))
    assert prefill_seconds(StepProfile(), prompt, cached) <= prefill_seconds(StepProfile(), prompt, 0)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_has_a_sound_name_labels_and_buckets(metric):
    assert re.fullmatch(r"(vllm:|triptych_(engine|handover|encoder|router|operator)_)[a-z0-9_]+", metric.name)
    assert metric.help.endswith(".")
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert len(set(metric.labels)) == len(metric.labels)
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert all(low < high for low, high in pairwise(metric.buckets))
    assert not metric.name.endswith(("_total", "_sum", "_count", "_bucket"))
    if metric.kind is Kind.HISTOGRAM and metric.name.startswith("triptych_"):
        assert metric.name.endswith("_seconds")


def test_a_name_is_used_once():
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_manual_clock_moves_only_forward_and_only_when_told():
    clock = ManualClock(5.0)
    clock.advance(1.5)
    assert clock.now_s() == 6.5
    with pytest.raises(ValueError, match="go back"):
        clock.advance(-1)


def test_the_system_clock_never_goes_back():
    clock = SystemClock()
    assert clock.now_s() <= clock.now_s()
