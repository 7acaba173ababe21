"""Routes, policies, health and accounting as pure decisions."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.clock import ManualClock
from triptych_contract.errors import HandoverRefused, Moved, NoInstance, Overloaded
from triptych_contract.instance import FullState, InstanceRecord, InstanceState, Load, LoadSample
from triptych_contract.profile import StepProfile
from triptych_contract.roles import STAGES, Phase, Role, Stage
from triptych_router.api.parse import Kind, Parsed
from triptych_router.cluster.health import judge
from triptych_router.cluster.view import ClusterView, Health, InstanceView, Stream, StreamGap, advance
from triptych_router.dispatch.retry import Budget, Cause, LegFailed, Step, next_step
from triptych_router.schedule.load import LoadBook
from triptych_router.schedule.policies import Policy, order
from triptych_router.schedule.route import Shape, bind_decode, schedule

LONG = Parsed(kind=Kind.COMPLETION, body=b"{}", prompt_tokens=400)


def instance(name: str, role: Role, **more: object) -> InstanceView:
    load = more.pop("load", LoadSample())
    health = more.pop("health", Health.ALIVE)
    record = InstanceRecord(name, "0" * 32, "default", "127.0.0.1", 1, 2)
    fields: dict[str, object] = {"phase": Phase.SERVING, "model": "m", "link_class": "a", **more}
    state = InstanceState(name, "0" * 32, "default", tuple(Stage), role, 1, load=load, **fields)  # type: ignore[arg-type]
    return InstanceView(record, state, health)  # type: ignore[arg-type]


def route(view: list[InstanceView], request: Parsed = LONG, **more: object):
    arguments: dict[str, object] = {"turn": 0, "handover_min_tokens": 16, **more}
    return schedule(ClusterView(tuple(view), True), request, {}, Policy.LEAST_LOAD, **arguments)  # type: ignore[arg-type]


P, D, M, E = (instance(r.value[0], r) for r in (Role.PREFILL, Role.DECODE, Role.MIXED, Role.ENCODE))


@pytest.mark.parametrize(
    ("view", "change", "shape"),
    [
        ([P, D], {}, Shape.HANDOVER),
        ([M], {}, Shape.LOCAL),
        ([D], {}, Shape.LOCAL),
        ([P, D], {"prompt_tokens": 3}, Shape.LOCAL),
        ([P, D], {"prompts": 2}, Shape.LOCAL),
        ([P, D], {"echo_logprobs": True}, Shape.LOCAL),
        ([E, P, D], {"media": True}, Shape.ENCODE_HANDOVER),
        ([E, M], {"media": True}, Shape.ENCODE_LOCAL),
        ([E, instance("x", Role.ALL)], {"media": True}, Shape.LOCAL),
        ([P, instance("d", Role.DECODE, link_class="b")], {}, Shape.LOCAL),
        ([P, instance("d", Role.DECODE, profile=StepProfile(0, 0, 0, 0, 0))], {}, Shape.LOCAL),
    ],
    ids=[
        "pair",
        "mixed",
        "no-prefill",
        "short",
        "list",
        "echo",
        "image",
        "image-mixed",
        "image-all",
        "link",
        "no-gain",
    ],
)
def test_the_shape_of_a_route(view: list[InstanceView], change: dict[str, object], shape: Shape) -> None:
    request = Parsed(**{**{name: getattr(LONG, name) for name in LONG.__slots__}, **change})  # type: ignore[arg-type]
    chosen = route(view, request)
    assert chosen.shape is shape
    assert chosen.reason
    assert chosen.legs[-1].instance is (None if chosen.leg(Stage.PREFILL) else chosen.legs[-1].instance)


@pytest.mark.parametrize(
    "broken",
    [{"health": Health.SUSPECT}, {"health": Health.DEAD}, {"phase": Phase.DRAINING}, {"phase": Phase.LOADING}],
    ids=lambda broken: str(next(iter(broken.values()))),
)
def test_nothing_new_goes_to_an_instance_that_is_not_well(broken: dict[str, object]) -> None:
    with pytest.raises(NoInstance) as refused:
        route([P, instance("d", Role.DECODE, **broken)])
    assert refused.value.retry_after_ms


def test_a_decode_instance_of_another_link_class_is_never_bound() -> None:
    view = ClusterView((instance("a", Role.DECODE, link_class="b"), D), True)
    bound = bind_decode(view, LONG, {}, Policy.LEAST_LOAD, link_class="a", turn=0)
    assert bound is D
    assert bind_decode(view, LONG, {}, Policy.LEAST_LOAD, link_class="c", turn=0) is None


def test_least_load_counts_seconds_of_work_not_requests() -> None:
    one_huge = instance("a", Role.MIXED, load=LoadSample(waiting=1, waiting_tokens=50_000))
    many_small = instance("b", Role.MIXED, load=LoadSample(waiting=9, waiting_tokens=90))
    assert order(Policy.LEAST_LOAD, [one_huge, many_small], LONG, {}, turn=0)[0] is many_small
    book = LoadBook()
    book.charge(("b", "0" * 32), prefill_tokens=10**6, output_tokens=1)
    assert order(Policy.LEAST_LOAD, [one_huge, many_small], LONG, book.view(), turn=0)[0] is one_huge


@given(count=st.integers(1, 7), requests=st.integers(1, 50), start=st.integers(0, 99))
def test_round_robin_differs_by_one_at_most(count: int, requests: int, start: int) -> None:
    instances = [instance(f"i{n}", Role.MIXED) for n in range(count)]
    turns = range(start, start + requests)
    chosen = [order(Policy.ROUND_ROBIN, instances, LONG, {}, turn=turn)[0].id for turn in turns]
    counts = [chosen.count(i.id) for i in instances]
    assert max(counts) - min(counts) <= 1


@given(seed=st.integers(0, 10_000))
def test_the_account_returns_to_exactly_zero(seed: int) -> None:
    """Any mix of first tokens and ends, in any order, each maybe told twice."""
    source, book, steps = random.Random(seed), LoadBook(), []
    for _ in range(source.randrange(1, 60)):
        key = (f"i{source.randrange(3)}", "x")
        charge = book.charge(key, prefill_tokens=source.randrange(9000), output_tokens=source.randrange(900))
        steps += [charge.close] * source.choice([1, 2]) + [charge.prefilled] * source.choice([0, 1, 2])
    source.shuffle(steps)
    for step in steps:
        step()
        for sums in book.view().values():
            assert min(sums.prefill_tokens, sums.requests, sums.output_tokens) >= 0
    assert not book.view()


def test_beats_and_steps_make_health() -> None:
    clock, last_s = ManualClock(), 0.0
    seen = []
    for _ in range(8):
        seen.append(judge(beat_age_s=clock.now_s() - last_s, load=LoadSample()))
        clock.advance(0.25)
    assert seen == [Health.ALIVE] * 3 + [Health.SUSPECT] * 3 + [Health.DEAD] * 2
    assert judge(beat_age_s=0, load=LoadSample(step_age_ms=2100, step_predicted_ms=5)) is Health.SUSPECT
    assert judge(beat_age_s=0, load=LoadSample(step_age_ms=2100, step_predicted_ms=500)) is Health.ALIVE
    assert judge(beat_age_s=0, load=LoadSample(), reachable=False) is Health.DEAD


def test_a_least_prompt_of_zero_hands_over_whatever_can_be() -> None:
    idle = instance("d", Role.DECODE, profile=StepProfile(0, 0, 0, 0, 0))
    short = replace(LONG, prompt_tokens=2)
    assert route([P, idle], short, handover_min_tokens=0).shape is Shape.HANDOVER
    assert route([P, idle], replace(LONG, prompt_tokens=1), handover_min_tokens=0).shape is Shape.LOCAL


def test_a_gap_in_a_state_stream_asks_for_the_whole_again() -> None:
    state, record = D.state, D.record
    stream = advance(Stream(), FullState(4, state), record, 1.0)
    stream = advance(stream, Load(5, LoadSample(running=3)), record, 2.0)
    assert stream.state is not None
    assert (stream.state.load.running, stream.beat_s) == (3, 2.0)
    for wrong in (Load(7, LoadSample()), Load(5, LoadSample())):
        with pytest.raises(StreamGap):
            advance(stream, wrong, record, 3.0)
    with pytest.raises(StreamGap):
        advance(Stream(), Load(0, LoadSample()), record, 1.0)
    with pytest.raises(StreamGap):
        advance(Stream(), FullState(0, state), InstanceRecord("d", "1" * 32, "default", "h", 1, 2), 1.0)


@pytest.mark.parametrize(
    ("failure", "attempts", "step"),
    [
        (LegFailed(Stage.DECODE, Cause.DIED), 1, Step.ELSEWHERE),
        (LegFailed(Stage.DECODE, Cause.DIED, delivered=True), 1, Step.GIVE_UP),
        (LegFailed(Stage.DECODE, Cause.GONE), 3, Step.GIVE_UP),
        (LegFailed(Stage.PREFILL, Cause.REFUSED, Moved("x")), 1, Step.ELSEWHERE),
        (LegFailed(Stage.PREFILL, Cause.REFUSED, Overloaded("x")), 9, Step.QUEUE),
        (LegFailed(Stage.DECODE, Cause.REFUSED, HandoverRefused("x")), 1, Step.BACK),
    ],
    ids=["died", "delivered", "tries-used", "moved", "full", "ticket"],
)
def test_what_follows_a_failure(failure: LegFailed, attempts: int, step: Step) -> None:
    assert next_step(failure, attempts=attempts, max_attempts=3) is step


def test_the_budget_is_a_floor_and_a_share() -> None:
    budget: Budget | None = Budget()
    for _ in range(10):
        assert budget is not None
        budget = budget.spend(0.0)
    assert budget is not None
    assert budget.spend(0.0) is None
    for _ in range(5):
        budget = budget.request()
    assert budget.spend(0.0) is not None
    assert Budget(0, 0.0).spend(0.1) is not None, "the floor refills with time"


def test_every_role_is_routed_by_its_stages() -> None:
    for role in Role:
        only = [instance("i", role)]
        if Stage.DECODE in STAGES[role]:
            assert route(only).legs[-1].instance is only[0]
        else:
            with pytest.raises(NoInstance):
                route(only)
