"""An engine that cannot start ends with one log line whose cause a person can act on."""

import json
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def test_a_taken_port_is_named_as_the_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "triptych_engine.main", "--sim", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    last = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 1
    assert (last["level"], last["event"], last["cause"]) == ("error", "cannot-start", "Address already in use")
