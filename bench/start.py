"""Second start: from `make demo ONCE=1` to its answer and its clean end, with the environment installed.

PyTorch engine and demo model, one prefill and one decode instance; the time holds the stop as well.
"""

import os
import socket
import subprocess
import time
from pathlib import Path

from bench.report import Row

RUNS = 5
LIMIT_S = 180.0
ROOT = Path(__file__).parent.parent


def run() -> list[Row]:
    """Seconds of the whole command; the first run, which may install, does not count."""
    seconds = [_demo() for _ in range(RUNS + 1)]
    return [Row("make demo ONCE=1, PyTorch engine", seconds[1:], "s", "at most 20 s")]


def _demo() -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began_s = time.monotonic()
    subprocess.run(
        ["make", "-s", "demo", "ONCE=1", f"PORT={port}"],
        cwd=ROOT,
        env={**os.environ, "TERM": "dumb"},
        check=True,
        timeout=LIMIT_S,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began_s


def main() -> None:
    """Print the seconds."""
    for row in run():
        print(row.what, row.samples, row.unit)


if __name__ == "__main__":
    main()
