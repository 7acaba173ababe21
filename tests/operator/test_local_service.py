"""One service in this process over fake children: the loop from observation to action, and its end."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.services import service
from triptych_operator.local_service import LocalService, LocalSettings
from triptych_operator.platforms.commands import Commands, Programs
from triptych_operator.state_dir import StateDirectory
from triptych_operator.status import ServiceStatus

pytestmark = pytest.mark.process

CHILD = str(Path(__file__).parent.parent / "fakes" / "fake_child.py")
DEADLINE_S = 30.0


def settings(folder: Path, spec: str) -> LocalSettings:
    state = StateDirectory(folder)
    state.prepare()
    wanted = service(f"drainSeconds: 1\n{spec}")
    commands = Commands(
        service=wanted,
        model_dir=None,
        discovery=state.instances,
        token_file=state.token_file,
        threads=1,
        max_context=4096,
        programs=Programs(engine=(sys.executable, CHILD, "engine"), router=(sys.executable, CHILD, "router")),
    )
    return LocalSettings(wanted, state, commands, 0, "demo.yaml", "sim")


class Running:
    """A service and the statuses that it told."""

    def __init__(self, folder: Path, spec: str, until: Callable[[ServiceStatus], bool]) -> None:
        self.settings = settings(folder, spec)
        self.told: list[ServiceStatus] = []
        self.reached = asyncio.Event()
        self._until = until
        self.service = LocalService(self.settings, on_status=self._on_status)

    def _on_status(self, status: ServiceStatus) -> None:
        self.told.append(status)
        if self._until(status):
            self.reached.set()

    async def run(self) -> None:
        running = asyncio.create_task(self.service.run())
        try:
            await asyncio.wait_for(self.reached.wait(), DEADLINE_S)
        finally:
            self.service.stop()
            await asyncio.wait_for(running, DEADLINE_S)


async def test_it_becomes_ready_tells_each_step_once_and_ends(tmp_path: Path) -> None:
    running = Running(tmp_path, "replicas: 2", lambda status: status.ready)
    await running.run()
    assert running.told[0].waiting_for == "engine-0 to be started"
    assert running.told[-1].waiting_for == ""
    assert all(first != second for first, second in zip(running.told, running.told[1:], strict=False))
    entry = running.settings.state.entry()
    assert entry is not None
    assert entry.status.ratio == "0/1/1"


async def test_an_encode_instance_gets_its_role_too(tmp_path: Path) -> None:
    running = Running(tmp_path, "encode: {}\nreplicas: 2", lambda status: status.ready)
    await running.run()
    assert running.told[-1].roles["encode"].ready == 1


async def test_a_suspended_service_starts_nothing(tmp_path: Path) -> None:
    running = Running(tmp_path, "suspend: true", lambda status: "suspended" in status.waiting_for)
    await running.run()
    entry = running.settings.state.entry()
    assert entry is not None
    assert entry.children == ()


async def test_a_status_that_cannot_be_written_stops_nothing_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(tmp_path, "replicas: 1", lambda status: status.ready)
    (tmp_path / "service.json").mkdir()
    await running.run()
    assert running.told[-1].ready
    assert [line for line in caplog.messages if "cannot be written" in line] == [
        "the status cannot be written: Is a directory"
    ]


async def test_a_service_that_was_told_to_stop_says_so(tmp_path: Path) -> None:
    running = Running(tmp_path, "replicas: 1", lambda status: status.ready)
    await running.run()
    entry = running.settings.state.entry()
    assert entry is not None
    assert (entry.status.ready, entry.status.waiting_for) == (False, "its running requests to end; then it stops")


async def test_two_stops_end_children_that_would_drain_for_long(tmp_path: Path) -> None:
    running = Running(tmp_path, "replicas: 1", lambda status: status.ready)
    task = asyncio.create_task(running.service.run())
    await asyncio.wait_for(running.reached.wait(), DEADLINE_S)
    running.service.stop()
    running.service.stop()
    await asyncio.wait_for(task, 5)
