"""Roles, assignments and phases: two tables and the rules that they keep."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import strategies as own
from triptych_contract.roles import (
    PHASES,
    STAGES,
    Assignment,
    Phase,
    PhaseEvent,
    Role,
    Stage,
    Verdict,
    judge,
    next_phase,
    role_of,
    roles_within,
)


def test_every_set_of_stages_is_exactly_one_role():
    assert len(STAGES) == len(Role) == 2 ** len(Stage)
    assert {role_of(stages) for stages in STAGES.values()} == set(Role)
    assert all(role_of(STAGES[role]) is role for role in Role)


@pytest.mark.parametrize(
    ("role", "stages"), [("mixed", {"prefill", "decode"}), ("all", {"encode", "prefill", "decode"}), ("unassigned", ())]
)
def test_names_of_composed_roles_stand_for_their_stages(role, stages):
    assert STAGES[Role(role)] == set(stages)


@given(capable=own.stage_sets)
def test_an_instance_can_take_exactly_the_roles_within_its_capabilities(capable):
    found = roles_within(capable)
    assert len(found) == 2 ** len(capable)
    assert all(STAGES[role] <= capable for role in found)
    assert Role.UNASSIGNED in found
    assert role_of(capable) in found


@given(current=own.assignments, wanted=own.assignments, capable=own.stage_sets)
def test_a_verdict_depends_on_capability_first_and_on_the_epoch_then(current, wanted, capable):
    verdict = judge(current, wanted, capable)
    if not STAGES[wanted.role] <= capable:
        assert verdict is Verdict.INCAPABLE
    elif wanted.epoch == current.epoch:
        assert verdict is (Verdict.SAME if wanted.role is current.role else Verdict.CONFLICT)
    else:
        assert verdict is (Verdict.ACCEPT if wanted.epoch > current.epoch else Verdict.STALE)


class RoleMachine(RuleBasedStateMachine):
    """An instance under any order of assignments, repeated and late ones among them."""

    def __init__(self):
        super().__init__()
        self.current = Assignment(Role.UNASSIGNED, 0)
        self.held = {0: Role.UNASSIGNED}
        self.seen_epochs = [0]

    @rule(wanted=own.assignments, capable=own.stage_sets)
    def assign(self, wanted, capable):
        verdict = judge(self.current, wanted, capable)
        if verdict is Verdict.ACCEPT:
            assert wanted.epoch not in self.held
            self.current = wanted
            self.held[wanted.epoch] = wanted.role
            self.seen_epochs.append(wanted.epoch)
        elif verdict is Verdict.SAME:
            assert wanted == self.current

    @rule()
    def repeat(self):
        assert judge(self.current, self.current, frozenset(Stage)) is Verdict.SAME

    @invariant()
    def epochs_only_rise_and_each_has_one_role(self):
        assert self.seen_epochs == sorted(set(self.seen_epochs))
        assert self.held[self.current.epoch] is self.current.role


TestRoleMachine = RoleMachine.TestCase


def test_every_phase_is_reached_from_loading():
    reached, todo = {Phase.LOADING}, [Phase.LOADING]
    while todo:
        phase = todo.pop()
        for event in PhaseEvent:
            following = next_phase(phase, event)
            if following not in reached:
                reached.add(following)
                todo.append(following)
    assert reached == set(Phase)


def test_every_event_moves_some_phase():
    assert {event for _, event in PHASES} == set(PhaseEvent)


def test_an_unknown_event_leaves_the_phase_and_a_failed_instance_stays_failed():
    for phase, event in product(Phase, PhaseEvent):
        if (phase, event) not in PHASES:
            assert next_phase(phase, event) is phase
    assert all(next_phase(Phase.FAILED, event) is Phase.FAILED for event in PhaseEvent)


def test_the_loss_of_the_core_fails_an_instance_in_every_phase():
    assert all(next_phase(phase, PhaseEvent.CORE_LOST) is Phase.FAILED for phase in Phase)


def test_a_drain_can_be_taken_back_before_and_after_it_is_complete():
    for phase in (Phase.DRAINING, Phase.DRAINED):
        assert next_phase(phase, PhaseEvent.CANCEL_DRAIN) is Phase.SERVING
