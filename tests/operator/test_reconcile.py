"""reconcile over a simulated world: settled is quiet, and every world settles, whatever happens on the way."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.services import service, state
from triptych_contract.clock import ManualClock
from triptych_contract.instance import InstanceState
from triptych_contract.roles import Assignment, Phase, Role, Stage, Verdict, judge
from triptych_operator.backoff import HEALTHY_S, crashes_after, delay_s
from triptych_operator.diff import Action, AssignRole, StartChild, StopChild
from triptych_operator.reconcile import Outcome, reconcile
from triptych_operator.snapshot import Component, ObservedChild, ObservedInstance, Snapshot
from triptych_operator.spec import LLMService

LLM = service("prefill: {replicas: 1}\ndecode: {replicas: 2}")


@dataclass
class World:
    """Children and instances that obey actions, and can be hurt."""

    service: LLMService = LLM
    clock: ManualClock = field(default_factory=lambda: ManualClock(100.0))
    children: dict[str, ObservedChild] = field(default_factory=dict)
    states: dict[str, InstanceState] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def snapshot(self) -> Snapshot:
        now = self.clock.now_s()
        for name, child in self.children.items():
            quiet = child.alive and name in self.silent
            since = child.silent_since_s if child.silent_since_s is not None else now
            self.children[name] = replace(child, silent_since_s=since if quiet else None)
        answers = {name: None if name in self.silent else found for name, found in self.states.items()}
        serving = [found for found in answers.values() if found is not None and found.phase == Phase.SERVING]
        router = self.children.get("router")
        return Snapshot(
            service=self.service,
            children=tuple(self.children.values()),
            instances=tuple(ObservedInstance(name, answer) for name, answer in answers.items()),
            router_ready=bool(router and router.alive and serving),
            url="http://127.0.0.1:8000",
        )

    def decide(self) -> Outcome:
        return reconcile(self.snapshot(), self.clock.now_s())

    def apply(self, action: Action) -> None:
        match action:
            case StartChild(name, component):
                self.start(name, component)
            case StopChild(name, at_once):
                self.end(name, -9 if at_once else 0)
            case AssignRole(name, role, epoch):
                self.assign(name, Assignment(Role(role), epoch))

    def start(self, name: str, component: Component) -> None:
        old = self.children.get(name) or ObservedChild(name, component, alive=False)
        assert not old.alive, "a living child is never started again"
        self.children[name] = replace(
            old, alive=True, pid=1, starts=old.starts + 1, started_s=self.clock.now_s(), listened=True
        )
        if component != Component.ROUTER:
            self.states[name] = state(name, Role.UNASSIGNED, epoch=0)

    def end(self, name: str, code: int) -> None:
        child = self.children[name]
        if child.alive:
            ran_s = self.clock.now_s() - child.started_s
            crashes = 0 if code == 0 else crashes_after(child.crashes, ran_s=ran_s)
            self.children[name] = replace(
                child, alive=False, exit_code=code, ended_s=self.clock.now_s(), crashes=crashes
            )
            self.states.pop(name, None)
            self.silent.discard(name)

    def assign(self, name: str, wanted: Assignment) -> None:
        found = self.states.get(name)
        if found is None or name in self.silent:
            return
        capable = frozenset({Stage.ENCODE}) if name.startswith("encode") else frozenset({Stage.PREFILL, Stage.DECODE})
        verdict = judge(Assignment(found.role, found.epoch), wanted, capable)
        assert verdict in (Verdict.ACCEPT, Verdict.SAME), f"{name} would refuse {wanted}"
        self.states[name] = state(name, wanted.role, epoch=wanted.epoch, phase=found.phase)
        self.children[name] = replace(self.children[name], assigned=wanted)

    def settle(self, rounds: int = 200) -> Outcome:
        for _ in range(rounds):
            outcome = self.decide()
            for action in outcome.actions:
                self.apply(action)
            if not outcome.actions and outcome.status.ready:
                return outcome
            self.clock.advance(max(outcome.requeue_s, 0.01))
        raise AssertionError(f"still waiting for {outcome.status.waiting_for}")


def roles(world: World) -> dict[str, Role]:
    return {name: found.role for name, found in world.states.items()}


def test_an_empty_world_becomes_the_service() -> None:
    world = World()
    world.settle()
    assert sorted(roles(world).values()) == [Role.DECODE, Role.DECODE, Role.PREFILL]
    assert world.children["router"].alive


def test_a_second_reconcile_is_empty() -> None:
    world = World()
    world.settle()
    assert world.decide().actions == ()


def test_every_action_has_a_reason() -> None:
    world = World()
    outcome = world.decide()
    assert len(outcome.reasons) == len(outcome.actions) > 0
    assert all(reason.split(": ", 1)[1] for reason in outcome.reasons)


def test_a_restarted_instance_gets_its_role_again_with_a_higher_epoch() -> None:
    world = World()
    world.settle()
    before = world.states["engine-0"]
    world.end("engine-0", -9)
    world.settle()
    assert world.states["engine-0"].role == before.role
    assert world.states["engine-0"].epoch > before.epoch


def test_an_instance_that_took_the_fallback_role_is_given_its_own() -> None:
    world = World()
    world.settle()
    world.states["engine-1"] = state("engine-1", Role.MIXED, epoch=9)
    world.settle()
    assert sorted(roles(world).values()) == [Role.DECODE, Role.DECODE, Role.PREFILL]
    assert world.states["engine-1"].epoch == 10


def test_an_edited_split_is_reached_by_changing_the_fewest_roles() -> None:
    world = World()
    world.settle()
    before = roles(world)
    world.service = service("prefill: {replicas: 2}\ndecode: {replicas: 1}")
    world.settle()
    changed = [name for name, role in roles(world).items() if before[name] != role]
    assert len(changed) == 1


def test_fewer_replicas_stop_the_surplus_by_draining() -> None:
    world = World()
    world.settle()
    world.service = service("prefill: {replicas: 1}\ndecode: {replicas: 1}")
    stops = [action for action in world.decide().actions if isinstance(action, StopChild)]
    assert [(stop.name, stop.at_once) for stop in stops] == [("engine-2", False)]


def test_a_silent_instance_is_replaced_after_a_minute_and_not_before() -> None:
    world = World()
    world.settle()
    world.silent.add("engine-0")
    world.decide()
    world.clock.advance(59)
    assert not world.decide().actions
    world.clock.advance(1)
    assert [action.name for action in world.decide().actions if isinstance(action, StopChild)] == ["engine-0"]


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.DRAINED])
def test_an_instance_beyond_serving_is_replaced(phase: Phase) -> None:
    world = World()
    world.settle()
    world.states["engine-0"] = state("engine-0", Role.PREFILL, phase=phase)
    assert isinstance(world.decide().actions[0], StopChild)


def test_a_suspended_service_is_left_alone() -> None:
    world = World(service=service("replicas: 2\nsuspend: true"))
    outcome = world.decide()
    assert outcome.actions == ()
    assert "suspended" in outcome.status.waiting_for


def test_status_says_what_it_waits_for() -> None:
    world = World()
    for action in world.decide().actions:
        world.apply(action)
    world.states["engine-0"] = state("engine-0", Role.UNASSIGNED, epoch=0, phase=Phase.LOADING, percent=43)
    assert world.decide().status.waiting_for == "engine-0: loading weights 43 %"


def test_status_counts_roles_and_names_the_owners() -> None:
    world = World()
    status = world.settle().status
    assert status.ratio == "0/1/2"
    assert (status.replicas, status.ready_replicas) == (3, 3)
    assert status.roles["decode"].ready == 2
    assert status.owners.roles == "prefill and decode"
    assert {condition.type: condition.status for condition in status.conditions} == {
        "Ready": "True",
        "Progressing": "False",
        "ModelAvailable": "True",
        "EnginesReady": "True",
        "RouterReady": "True",
    }


class TestBackOff:
    def test_doubles_from_half_a_second_to_thirty(self) -> None:
        assert [delay_s(crashes) for crashes in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]

    def test_a_healthy_minute_forgets_the_past(self) -> None:
        assert crashes_after(7, ran_s=HEALTHY_S) == 1
        assert crashes_after(7, ran_s=HEALTHY_S - 1) == 8

    def test_a_crashed_child_waits_its_time_and_then_starts(self) -> None:
        world = World()
        world.settle()
        for wait_s in (0.5, 1.0, 2.0, 4.0):
            world.end("engine-0", 1)
            early = world.decide()
            assert early.actions == ()
            assert early.requeue_s == pytest.approx(min(wait_s, 0.25))
            world.clock.advance(wait_s - 0.01)
            assert world.decide().actions == ()
            world.clock.advance(0.01)
            (start,) = world.decide().actions
            assert isinstance(start, StartChild)
            assert start.because == "it ended with exit code 1"
            world.apply(start)

    def test_the_crash_and_its_last_words_are_told(self) -> None:
        world = World()
        world.settle()
        world.end("engine-0", 3)
        world.children["engine-0"] = replace(world.children["engine-0"], last_words="out of memory")
        assert world.decide().status.waiting_for == "engine-0, which ended once (exit code 3): out of memory"

    def test_a_kill_is_told_by_its_name(self) -> None:
        world = World()
        world.settle()
        world.end("engine-0", -9)
        told = world.decide().status.waiting_for
        assert told == "engine-0, which ended once (killed by SIGKILL; the machine may be out of memory)"

    def test_a_child_that_was_given_up_is_told_with_the_reason_and_not_as_killed(self) -> None:
        world = World()
        world.settle()
        world.end("engine-0", -9)
        world.children["engine-0"] = replace(world.children["engine-0"], given_up="weights are broken.")
        assert world.decide().status.waiting_for == "engine-0, which failed once: weights are broken"
        world.clock.advance(1.0)
        assert [action.because for action in world.decide().actions] == ["it was ended: weights are broken."]

    def test_a_hanging_instance_is_not_said_to_have_ended(self) -> None:
        world = World()
        world.settle()
        world.end("engine-0", 3)
        world.settle()
        world.silent.add("engine-0")
        assert world.decide().status.waiting_for == "engine-0, which does not answer; it is replaced if that lasts"


SPECS = [
    "",
    "replicas: 3",
    "prefill: {replicas: 2}\ndecode: {replicas: 1}",
    "topology: EPD\nencode: {replicas: 2}",
    "topology: Mixed\nreplicas: 2",
]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["kill", "hang", "forget", "drift", "fail", "edit", "pass", "crash-between"]),
        st.integers(0, 7),
        st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED]),
    ),
    max_size=25,
)


def hurt(world: World, event: str, number: int, role: Role) -> None:
    """Something happens to one child, to the spec or to the operator itself."""
    names = sorted(world.children)
    name = names[number % len(names)] if names else ""
    found = world.states.get(name)
    if event == "kill" and name:
        world.end(name, -9)
    elif event == "hang" and found is not None:
        world.silent.add(name)
    elif event == "forget" and name:
        world.children[name] = replace(world.children[name], assigned=None)
    elif event == "drift" and found is not None and not name.startswith("encode"):
        world.states[name] = state(name, role, epoch=found.epoch + number)
    elif event == "fail" and found is not None:
        world.states[name] = state(name, found.role, epoch=found.epoch, phase=Phase.FAILED)
    elif event == "edit":
        world.service = service(SPECS[number % len(SPECS)])
    else:
        world.clock.advance(number)


@settings(max_examples=150, deadline=None)
@given(spec=st.sampled_from(SPECS), events=EVENTS)
def test_every_world_settles_after_any_events_and_a_crash_between_any_two_actions(
    spec: str, events: list[tuple[str, int, Role]]
) -> None:
    world = World(service=service(spec))
    for event, number, role in events:
        actions = world.decide().actions
        for action in actions[:number] if event == "crash-between" else actions:
            world.apply(action)
        hurt(world, event, number, role)
    world.settle(rounds=2000)
    assert world.decide().actions == ()
    wanted = {name: count.desired for name, count in world.decide().status.roles.items()}
    held = [found.role for name, found in world.states.items() if world.children[name].alive]
    assert {role: held.count(Role(role)) for role in wanted} == wanted
