"""Role state, and the list of routes by caller."""

import pytest

from triptych_contract.errors import BadRequest, EpochConflict, Moved, NotReady, Unauthorized
from triptych_contract.roles import Assignment, Phase, PhaseEvent, Role, Stage
from triptych_engine.server.access import Access, Guard
from triptych_engine.server.app import ROUTES
from triptych_engine.server.role import RoleState

TOKEN = "0123456789abcdef"


def state(role: Role = Role.UNASSIGNED, epoch: int = 0) -> RoleState:
    made = RoleState(initial=Assignment(role, epoch), capable=frozenset({Stage.PREFILL, Stage.DECODE}))
    made.apply(PhaseEvent.LOADED)
    return made


class TestRole:
    def test_is_idempotent_by_epoch(self) -> None:
        role = state()
        role.assign(Assignment(Role.PREFILL, 3))
        role.assign(Assignment(Role.PREFILL, 3))
        assert role.assignment == Assignment(Role.PREFILL, 3)

    @pytest.mark.parametrize("wanted", [Assignment(Role.PREFILL, 2), Assignment(Role.DECODE, 3)])
    def test_refuses_a_stale_or_contradicting_epoch(self, wanted: Assignment) -> None:
        with pytest.raises(EpochConflict):
            state(Role.PREFILL, 3).assign(wanted)

    def test_refuses_what_the_instance_cannot_take(self) -> None:
        with pytest.raises(BadRequest):
            state().assign(Assignment(Role.ALL, 1))

    def test_falls_back_to_the_largest_one_only_without_instructions(self) -> None:
        alone, told = state(), state(Role.UNASSIGNED, 4)
        assert alone.fall_back()
        assert alone.assignment == Assignment(Role.MIXED, 0)
        assert not told.fall_back()

    def test_masks_new_work(self) -> None:
        role = state(Role.PREFILL, 3)
        role.admit(Stage.PREFILL, None)
        role.admit(Stage.PREFILL, 3)
        with pytest.raises(Moved):
            role.admit(Stage.DECODE, 3)
        with pytest.raises(Moved):
            role.admit(Stage.PREFILL, 2)

    def test_takes_nothing_while_draining_and_goes_on_after_a_cancelled_drain(self) -> None:
        role = state(Role.MIXED, 1)
        role.apply(PhaseEvent.DRAIN)
        with pytest.raises(NotReady):
            role.admit(Stage.DECODE, None)
        role.apply(PhaseEvent.CANCEL_DRAIN)
        role.admit(Stage.DECODE, None)
        assert role.phase is Phase.SERVING

    def test_a_drain_is_not_taken_back_once_the_program_ends(self) -> None:
        held = state()
        held.drain_for_good()
        with pytest.raises(NotReady):
            held.cancel_drain()
        assert held.phase is Phase.DRAINING

    def test_a_drain_during_loading_is_not_taken_back_before_there_is_a_model(self) -> None:
        held = RoleState(initial=Assignment(Role.MIXED, 1), capable=frozenset(Stage))
        held.apply(PhaseEvent.DRAIN)
        with pytest.raises(NotReady):
            held.cancel_drain()
        held.apply(PhaseEvent.LOADED)
        held.cancel_drain()
        assert held.phase is Phase.SERVING

    def test_without_one_nothing_is_taken(self) -> None:
        with pytest.raises(NotReady):
            state().admit(Stage.DECODE, None)


GOLDEN = """\
DELETE /instance/leases/{lease}: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
GET /health: loopback none=in wrong=in right=in, open none=in wrong=in right=in
GET /instance/audit: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
GET /instance/events: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
GET /instance: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
GET /livez: loopback none=in wrong=in right=in, open none=in wrong=in right=in
GET /metrics: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
GET /readyz: loopback none=in wrong=in right=in, open none=in wrong=in right=in
GET /v1/models/{model:.+}: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
GET /v1/models: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
GET /version: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
POST /detokenize: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
POST /instance/drain: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
POST /instance/leases/{lease}: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
POST /instance/role: loopback none=401 wrong=401 right=in, open none=401 wrong=401 right=in
POST /tokenize: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
POST /v1/chat/completions: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
POST /v1/completions: loopback none=in wrong=in right=in, open none=401 wrong=401 right=in
"""


class TestAccess:
    def test_of_every_route_by_bind_and_token_is_as_listed(self) -> None:
        assert "\n".join(sorted(self.line(r.method, r.path, r.access) for r in ROUTES)) + "\n" == GOLDEN

    def line(self, method: str, path: str, access: Access) -> str:
        binds = ", ".join(
            f"{name} {self.callers(access, loopback=name == 'loopback')}" for name in ("loopback", "open")
        )
        return f"{method} {path}: {binds}"

    def callers(self, access: Access, *, loopback: bool) -> str:
        guard = Guard(token=TOKEN, loopback=loopback, insecure=False)
        shown = {"none": None, "wrong": f"Bearer {TOKEN}x", "right": f"Bearer {TOKEN}"}
        return " ".join(f"{name}={self.tried(guard, access, text)}" for name, text in shown.items())

    def tried(self, guard: Guard, access: Access, shown: str | None) -> str:
        try:
            guard.check(access, shown)
        except Unauthorized as error:
            return str(error.status)
        return "in"

    @pytest.mark.parametrize("shown", [None, "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN])
    def test_without_a_token_of_its_own_nobody_is_trusted(self, shown: str | None) -> None:
        assert not Guard(token="", loopback=True, insecure=False).trusts(shown)

    def test_insecure_counts_on_loopback_only(self) -> None:
        assert Guard(token="", loopback=True, insecure=True).trusts(None)
        assert not Guard(token="", loopback=False, insecure=True).trusts(None)
