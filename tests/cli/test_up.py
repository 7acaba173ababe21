"""`triptych up` over fake children: what it shows, what it proves, what it refuses, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from triptych_operator.state_dir import StateDirectory

pytestmark = pytest.mark.process

PROGRAM = [sys.executable, str(Path(__file__).parent.parent / "fakes" / "fake_triptych.py")]
DEADLINE_S = 20.0
HOLDS = """
import pathlib, sys
from triptych_operator.state_dir import StateDirectory
with StateDirectory(pathlib.Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""
SPLIT = "prefill: {replicas: 1}\n  decode: {replicas: 1}"


def write(folder: Path, spec: str = SPLIT, *, name: str = "demo", profile: str = "sim") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        "apiVersion: triptych.dev/v1alpha1\nkind: LLMService\n"
        f"metadata: {{name: {name}}}\nspec:\n  model: {{source: 'demo://'}}\n  drainSeconds: 1\n"
        f"  engine: {{profile: {profile}}}\n  {spec}\n"
    )
    return path


class Terminal:
    """Runs the command with a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state" / "triptych"
        self.started: list[subprocess.Popen[str]] = []

    def environment(self, **extra: str) -> dict[str, str]:
        tests = str(Path(__file__).parent.parent)
        return {**os.environ, "XDG_STATE_HOME": str(self.folder / "state"), "PYTHONPATH": tests, **extra}

    def run(self, *words: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*PROGRAM, *words], env=self.environment(**extra), capture_output=True, text=True, timeout=60, check=False
        )

    def up(self, *words: str, **extra: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*PROGRAM, "up", "--port", "0", *words],
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def status(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", *words, "-o", "json").stdout)
        return found

    def entry(self, name: str = "demo") -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.state / name / "service.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def is_ready(self) -> bool:
        conditions = self.entry().get("status", {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def pid(self, child: str) -> int:
        return next(int(item["pid"]) for item in self.entry()["children"] if item["name"] == child)

    def pids(self) -> list[int]:
        return [int(item["pid"]) for item in self.entry()["children"]]

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)
            if process.stdout is not None:
                process.stdout.close()


def until(true: Callable[[], bool], *, within_s: float = DEADLINE_S) -> float:
    """Wait for a condition; returns the seconds that it took."""
    start_s = time.monotonic()
    while not true():
        assert time.monotonic() - start_s < within_s, "the condition does not come true"
        time.sleep(0.02)
    return time.monotonic() - start_s


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture
def running(terminal: Terminal, tmp_path: Path) -> Terminal:
    """A service that is up."""
    terminal.up("-f", str(write(tmp_path)))
    until(terminal.is_ready)
    return terminal


class TestOnce:
    def test_one_question_is_answered_and_the_hand_over_proved(self, terminal: Terminal, tmp_path: Path) -> None:
        process = terminal.up("-f", str(write(tmp_path)), "--ask", "Who are you?", "--once")
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output
        assert "answer: echo: Who are you?" in output
        assert "served by: prefill=engine-0, decode=engine-1" in output
        assert "hand-over: blocks_received=4 tokens_recomputed=1" in output
        assert "/v1/chat/completions" in output
        assert "from openai import OpenAI" in output

    @pytest.mark.parametrize(("blocks", "tokens"), [(0, 1), (4, 0), (4, 2)])
    def test_an_unhealthy_hand_over_is_a_failure(
        self, terminal: Terminal, tmp_path: Path, blocks: int, tokens: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_HANDOVER", f"{blocks},{tokens}")
        process = terminal.up("-f", str(write(tmp_path)), "--ask", "Hello", "--once")
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1
        assert f"computed {tokens} prompt tokens itself (1 is right) and received {blocks} blocks" in output

    def test_a_mixed_service_needs_no_hand_over(self, terminal: Terminal, tmp_path: Path) -> None:
        process = terminal.up("-f", str(write(tmp_path, "topology: Mixed")), "--ask", "Hello", "--once")
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output
        assert "answer: echo: Hello" in output

    def test_instances_that_cannot_start_are_told_with_their_last_words(
        self, terminal: Terminal, tmp_path: Path
    ) -> None:
        process = terminal.up("-f", str(write(tmp_path)), "--once", FAKE_CRASH="7")
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1
        last = output.strip().splitlines()[-1]
        assert "times in a row (exit code 7): the weights are broken; see: triptych logs" in last


class TestDetach:
    def test_it_returns_when_the_service_is_ready_and_down_ends_it(self, terminal: Terminal, tmp_path: Path) -> None:
        result = terminal.run("up", "-f", str(write(tmp_path)), "--port", "0", "--detach")
        try:
            assert result.returncode == 0, result.stderr
            assert "demo is ready at" in result.stdout
            assert terminal.status("demo")["service"]["phase"] == "ready"
        finally:
            assert terminal.run("down", "demo").returncode == 0

    def test_a_service_that_ends_at_once_shows_what_it_said(self, terminal: Terminal, tmp_path: Path) -> None:
        path = write(tmp_path, "topology: EPD\n  encode: {}", profile="cpu")
        result = terminal.run("up", "-f", str(path), "--port", "0", "--detach")
        assert result.returncode == 1
        assert "run encode with engine.profile: sim" in result.stderr

    def test_instances_that_cannot_start_end_it(self, terminal: Terminal, tmp_path: Path) -> None:
        result = terminal.run("up", "-f", str(write(tmp_path)), "--port", "0", "--detach", FAKE_CRASH="7")
        assert result.returncode == 1
        assert "times in a row (exit code 7): the weights are broken" in result.stderr
        until(lambda: terminal.run("status", "demo").returncode == 3)


class TestRepair:
    def test_a_killed_instance_comes_back_with_its_role_and_a_higher_epoch(self, running: Terminal) -> None:
        before = {item["id"]: item for item in running.status()["instances"]}
        old = running.pid("engine-0")
        os.kill(old, signal.SIGKILL)
        until(lambda: running.pid("engine-0") != old and running.is_ready())
        after = {item["id"]: item for item in running.status()["instances"]}
        assert after["engine-0"]["role"] == before["engine-0"]["role"]
        assert after["engine-0"]["epoch"] > before["engine-0"]["epoch"]
        assert after["engine-1"]["epoch"] == before["engine-1"]["epoch"]

    def test_a_killed_router_comes_back_on_its_port(self, running: Terminal) -> None:
        url, old = running.entry()["url"], running.pid("router")
        os.kill(old, signal.SIGKILL)
        until(lambda: running.pid("router") != old and running.is_ready())
        assert running.entry()["url"] == url
        assert running.status()["router"] == {"address": url, "phase": "serving", "ready": True}

    def test_children_end_within_two_seconds_of_a_killed_up(self, running: Terminal) -> None:
        pids = running.pids()
        assert len(pids) == 3
        running.started[0].kill()
        assert until(lambda: all(gone(pid) for pid in pids), within_s=2.0) < 2.0

    def test_a_terminated_up_drains_and_ends_with_zero(self, running: Terminal) -> None:
        pids = running.pids()
        running.started[0].terminate()
        assert running.started[0].wait(timeout=DEADLINE_S) == 0
        assert all(gone(pid) for pid in pids)

    def test_a_reader_that_leaves_does_not_end_it(self, terminal: Terminal, tmp_path: Path) -> None:
        up = terminal.up("-f", str(write(tmp_path)))
        assert up.stdout is not None
        up.stdout.close()
        until(terminal.is_ready)
        up.terminate()
        assert up.wait(timeout=DEADLINE_S) == 0

    def test_ctrl_c_stops_it_cleanly(self, running: Terminal) -> None:
        running.started[0].send_signal(signal.SIGINT)
        assert running.started[0].wait(timeout=DEADLINE_S) == 0


class TestStatus:
    def test_the_json_has_exactly_the_documented_keys(self, running: Terminal) -> None:
        found = running.status()
        assert set(found) == {"service", "router", "instances", "ignoredFields", "waitingFor"}
        assert found["waitingFor"] == ""
        for instance in found["instances"]:
            assert set(instance) == {
                *("id", "role", "epoch", "phase", "address", "running", "waiting", "blocks", "handover"),
            }
            assert set(instance["blocks"]) == {"free", "cached", "held", "in_transfer", "total"}
            assert set(instance["handover"]) == {"blocks_sent", "blocks_received", "tokens_recomputed"}
        assert [item["role"] for item in found["instances"]] == ["prefill", "decode"]

    def test_a_dead_instance_is_shown_as_dead_at_once(self, terminal: Terminal, tmp_path: Path) -> None:
        up = terminal.up("-f", str(write(tmp_path)))
        until(terminal.is_ready)
        up.send_signal(signal.SIGSTOP)  # so that the operator cannot repair what status is to tell
        try:
            os.kill(terminal.pid("engine-1"), signal.SIGKILL)
            phases = {item["id"]: item["phase"] for item in terminal.status()["instances"]}
        finally:
            up.send_signal(signal.SIGCONT)
        assert phases == {"engine-0": "serving", "engine-1": "dead"}

    def test_a_stopped_instance_is_unreachable_within_a_second(self, running: Terminal) -> None:
        pid = running.pid("engine-0")
        os.kill(pid, signal.SIGSTOP)
        try:
            phases = {item["id"]: item["phase"] for item in running.status()["instances"]}
        finally:
            os.kill(pid, signal.SIGCONT)
        assert phases["engine-0"] == "unreachable"

    def test_after_the_end_it_fails_with_code_three(self, running: Terminal) -> None:
        running.started[0].terminate()
        running.started[0].wait(timeout=DEADLINE_S)
        result = running.run("status", "demo")
        assert result.returncode == 3
        assert "demo is not running; start it with: triptych up -f" in result.stderr

    def test_fields_that_are_not_acted_on_are_named(self, terminal: Terminal, tmp_path: Path) -> None:
        terminal.up("-f", str(write(tmp_path, "replicas: 1\n  slo: {percentile: 95}")))
        until(terminal.is_ready)
        assert terminal.status()["ignoredFields"] == ["spec.slo"]


class TestRefusals:
    def test_a_bad_file_fails_with_code_two_and_all_faults(self, terminal: Terminal, tmp_path: Path) -> None:
        path = write(tmp_path, "replicas: two\n  topology: pd")
        result = terminal.run("up", "-f", str(path))
        assert result.returncode == 2
        assert "2 faults" in result.stderr
        assert "line 8, column 3: spec.replicas" in result.stderr

    def test_a_second_up_of_the_same_name_is_told_about_the_first(self, running: Terminal, tmp_path: Path) -> None:
        result = running.run("up", "-f", str(write(tmp_path)), "--port", "0")
        assert result.returncode == 1
        assert "a service named demo is already running" in result.stderr
        assert "triptych down demo" in result.stderr

    def test_a_taken_port_names_the_way_out(self, terminal: Terminal, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = terminal.run("up", "-f", str(write(tmp_path)), "--port", str(port))
        assert result.returncode == 1
        assert result.stderr == (
            f"triptych: port {port} is in use; take another one with --port, or a free one with --port 0\n"
        )

    def test_commands_without_a_service_say_how_to_start_one(self, terminal: Terminal) -> None:
        for command in ("status", "down", "chat", "logs"):
            result = terminal.run(command)
            assert result.returncode == 3
            assert result.stderr == "triptych: no service is running; start one with: triptych up -f FILE\n"

    def test_detach_goes_without_a_question(self, terminal: Terminal, tmp_path: Path) -> None:
        assert terminal.run("up", "-f", str(write(tmp_path)), "--detach", "--once").returncode == 2

    def test_an_unknown_name_is_answered_with_those_that_are_known(self, running: Terminal) -> None:
        result = running.run("status", "dem")
        assert result.returncode == 3
        assert "no service named dem was ever started here (there are: demo)" in result.stderr


class TestOtherCommands:
    def test_logs_of_a_service_that_ended_are_shown_without_its_name(self, running: Terminal) -> None:
        running.started[0].terminate()
        running.started[0].wait(timeout=DEADLINE_S)
        result = running.run("logs", "router")
        assert (result.returncode, result.stderr) == (0, "")
        assert "listening" in result.stdout

    def test_a_service_that_still_looks_for_its_model_says_so_and_can_be_ended(self, terminal: Terminal) -> None:
        directory = StateDirectory(terminal.state / "demo")
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(directory.path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert "demo is starting" in terminal.run("status").stderr
            assert "demo is starting" in terminal.run("chat", "-m", "hello").stderr
            assert terminal.run("down").stdout.strip().endswith("demo has ended")
            assert holder.wait(timeout=DEADLINE_S) == -signal.SIGTERM
        finally:
            holder.kill()
            holder.communicate()

    def test_down_ends_a_service_and_is_idempotent(self, running: Terminal) -> None:
        pids = running.pids()
        first = running.run("down")
        assert first.returncode == 0
        assert first.stdout.strip().endswith("demo has ended")
        assert all(gone(pid) for pid in pids)
        second = running.run("down", "demo")
        assert (second.returncode, second.stdout) == (0, "demo is not running\n")

    def test_chat_streams_one_answer(self, running: Terminal) -> None:
        result = running.run("chat", "-m", "good morning")
        assert (result.returncode, result.stdout) == (0, "echo: good morning \n")

    def test_chat_reads_messages_until_the_end_of_input(self, running: Terminal) -> None:
        result = subprocess.run(
            [*PROGRAM, "chat"],
            env=running.environment(),
            input="one\n\ntwo\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0
        assert "echo: one" in result.stdout
        assert "echo: two" in result.stdout

    def test_followed_logs_go_on_with_new_lines(self, running: Terminal) -> None:
        follower = subprocess.Popen(
            [*PROGRAM, "logs", "engine-0", "-f", "-n", "1"],
            env=running.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert follower.stdout is not None
            assert "engine listens" in follower.stdout.readline()
            os.kill(running.pid("engine-0"), signal.SIGKILL)
            assert {"listening" in follower.stdout.readline(), "listens" in follower.stdout.readline()} == {True}
        finally:
            follower.kill()
            follower.wait(timeout=10)
            if follower.stdout is not None:
                follower.stdout.close()

    def test_logs_show_one_child_or_all(self, running: Terminal) -> None:
        assert "engine listens" in running.run("logs", "engine-0").stdout
        assert "router    router listens" in running.run("logs").stdout

    def test_logs_of_nobody_name_who_there_is(self, running: Terminal) -> None:
        result = running.run("logs", "engine-9")
        assert result.returncode == 2
        assert "there are: engine-0, engine-1, router" in result.stderr

    def test_the_token_is_for_its_owner_alone(self, running: Terminal) -> None:
        token = running.state / "demo" / "token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert len(token.read_text()) >= 32
        assert (running.state / "demo").stat().st_mode & 0o777 == 0o700
