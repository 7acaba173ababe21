"""The report of `status` joins what the operator wrote with what was heard just now; what was heard wins."""

import os

import pytest

from fakes.services import state
from triptych.live import Answers, report
from triptych_contract.instance import InstanceRecord
from triptych_contract.roles import Phase, Role
from triptych_operator.state_dir import ChildEntry, ServiceEntry
from triptych_operator.status import Condition, Owners, ServiceStatus

READY = ServiceStatus("http://x", 1, 1, {}, "0/1/1", Owners("", ""), (Condition("Ready", "True", "Serving"),))
ENTRY = ServiceEntry(
    *("demo", os.getpid(), "demo.yaml", "http://x", "sim", "demo", READY),
    children=(ChildEntry("engine-0", "engine", os.getpid(), True), ChildEntry("router", "router", os.getpid(), True)),
)
RECORD = InstanceRecord("engine-0", "0" * 32, "demo", "127.0.0.1", 4711, 4712)


@pytest.mark.parametrize(
    ("phase", "router_ready", "waiting_for"),
    [
        (Phase.SERVING, True, ""),
        (Phase.FAILED, True, "engine-0, which is failed"),
        (Phase.DRAINING, True, "engine-0, which is draining"),
        (None, True, "engine-0, which is unreachable"),
        (Phase.SERVING, False, "the router, which is waiting"),
        (Phase.SERVING, None, "the router, which is unreachable"),
    ],
)
def test_a_service_that_waits_says_for_what_even_before_its_operator_knows(
    phase: Phase | None, router_ready: bool | None, waiting_for: str
) -> None:
    heard = None if phase is None else state("engine-0", Role.MIXED, phase=phase)
    found = report(ENTRY, Answers({"engine-0": RECORD}, {"engine-0": heard}, router_ready), held=True)
    assert found.waiting_for == waiting_for
    assert found.service.phase == ("waiting" if waiting_for else "ready")
