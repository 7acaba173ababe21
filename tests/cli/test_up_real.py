"""`triptych up` with the real engine (simulated executor) and the real router: the promises of docs/cli.md."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Service:
    """One running `triptych up`."""

    def __init__(self, folder: Path, example: str, *words: str, engine: str = "sim") -> None:
        self.environment = {**os.environ, "XDG_STATE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        self.name = example.removesuffix(".yaml")
        self.log = folder / "up.log"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [
                    *self.program,
                    "up",
                    "-f",
                    str(ROOT / "examples" / example),
                    "--engine",
                    engine,
                    "--port",
                    "0",
                    *words,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )

    @property
    def program(self) -> list[str]:
        return [sys.executable, "-m", "triptych"]

    def status(self) -> dict[str, Any]:
        result = subprocess.run(
            [*self.program, "status", self.name, "-o", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        found: dict[str, Any] = json.loads(result.stdout) if result.stdout else {}
        return found

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return bool(self.status().get("service", {}).get("phase") == "ready")

    def family(self) -> list[psutil.Process]:
        """Every process below `up`: router, servers, cores."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def server(self, instance: str) -> psutil.Process:
        return next(p for p in self.family() if instance in p.cmdline() and "triptych_engine.main" in p.cmdline())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=10)


def until(true: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end_s, "the condition does not come true"
        time.sleep(0.05)


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def begin(example: str, *words: str, engine: str = "sim") -> Service:
        made.append(Service(tmp_path, example, *words, engine=engine))
        return made[-1]

    yield begin
    for service in made:
        service.close()


def test_one_question_proves_the_hand_over_and_everything_ends(start: Callable[..., Service]) -> None:
    service = start("laptop.yaml", "--ask", "What is a hand-over?", "--once")
    assert service.process.wait(timeout=DEADLINE_S) == 0, service.log.read_text()
    output = service.log.read_text()
    assert "served by: prefill=engine-0, decode=engine-1" in output
    assert "tokens_recomputed=1" in output
    assert service.status()["service"]["phase"] == "stopped"


@pytest.mark.torch
def test_the_demo_model_answers_through_the_pytorch_engine(start: Callable[..., Service]) -> None:
    service = start("laptop.yaml", "--ask", "What is a hand-over?", "--once", engine="torch")
    assert service.process.wait(timeout=2 * DEADLINE_S) == 0, service.log.read_text()
    output = service.log.read_text()
    assert "served by: prefill=engine-0, decode=engine-1" in output
    assert "tokens_recomputed=1" in output


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_every_example_comes_up_and_answers(start: Callable[..., Service], example: str) -> None:
    service = start(example, "--ask", "Hello", "--once")
    assert service.process.wait(timeout=DEADLINE_S) == 0, service.log.read_text()
    assert f"{service.name} is ready at http://127.0.0.1:" in service.log.read_text()
    assert "answer: " in service.log.read_text()


def test_three_stages_come_up_and_hand_over(start: Callable[..., Service]) -> None:
    service = start("epd.yaml", "--ask", "Hello", "--once")
    assert service.process.wait(timeout=DEADLINE_S) == 0, service.log.read_text()
    assert "epd is ready" in service.log.read_text()
    assert "(1 encode, 1 prefill, 1 decode)" in service.log.read_text()


def test_a_killed_instance_comes_back_in_its_role(start: Callable[..., Service]) -> None:
    service = start("laptop.yaml")
    until(service.is_ready)
    before = {item["id"]: item for item in service.status()["instances"]}
    service.server("engine-1").kill()
    told = {item["id"]: item["phase"] for item in service.status()["instances"]}
    assert told["engine-1"] != "serving"
    until(service.is_ready)
    after = {item["id"]: item for item in service.status()["instances"]}
    assert after["engine-1"]["role"] == before["engine-1"]["role"] == "decode"
    assert after["engine-1"]["epoch"] > before["engine-1"]["epoch"]
    assert after["engine-0"] == {**before["engine-0"], "blocks": after["engine-0"]["blocks"]}


def test_a_killed_router_comes_back_on_its_port(start: Callable[..., Service]) -> None:
    service = start("laptop.yaml")
    until(service.is_ready)
    address = service.status()["router"]["address"]
    router = next(p for p in service.family() if "triptych_router.main" in p.cmdline())
    router.kill()
    until(lambda: ended(router) and service.is_ready())
    assert service.status()["router"] == {"address": address, "phase": "serving", "ready": True}


def test_the_whole_family_ends_within_two_seconds_of_a_killed_up(start: Callable[..., Service]) -> None:
    service = start("laptop.yaml")
    until(service.is_ready)
    family = service.family()
    assert len(family) >= 5, "a router, two servers, two cores"
    service.process.send_signal(signal.SIGKILL)
    until(lambda: all(ended(process) for process in family), within_s=2.0)
