"""The program itself: its ready line, its refusals, and its two ways to end."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


def start(tmp_path: Path, *flags: str) -> "subprocess.Popen[str]":
    token = tmp_path / "token"
    token.write_text("a-service-token-of-the-tests")
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "triptych_router.main", "--discovery", f"local:{tmp_path}/d"),
            *("--token-file", str(token), "--port", "0", *flags),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_tells_its_port_and_ends_on_sigterm_with_0(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["event"] == "listening"
        assert said["http_port"] > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_it_ends_when_stdin_does(tmp_path: Path) -> None:
    with start(tmp_path, "--exit-with-stdin") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_faulty_settings_are_told_line_by_line(tmp_path: Path) -> None:
    with start(tmp_path, "--host", "0.0.0.0", "--retries", "99") as process:
        assert process.wait(timeout=10) == 2
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("triptych-router: --") for line in lines)
