"""`make demo` on a fresh checkout: what the first page of the README promises, run as it is written there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("make") is None or shutil.which("git") is None, reason="needs make and git"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """Every file that git knows or would add, in a folder without an environment; removed again, as it grows large."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    folder = tmp_path / "checkout"
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)


def promised():
    """The lines that the README shows, as patterns: what differs from run to run may be anything."""
    block = (ROOT / "README.md").read_text().split("<!-- demo:")[1].split("```text\n")[1].split("```")[0]
    variable = (r":\d+/", ":\\d+/"), (r"\d+ %", "\\d+ %"), (r"blocks_received=\d+", "blocks_received=[1-9]\\d*")
    for line in filter(None, block.splitlines()):
        shown = re.escape("answer: ") + "\\S.*" if line.startswith("answer: ") else re.escape(line).replace("\\ ", " ")
        for found, pattern in variable:
            shown = re.sub(found, lambda _, pattern=pattern: pattern, shown)
        yield shown.replace(re.escape("...}'"), ".*")


@pytest.mark.parametrize("engine", ["sim", pytest.param("torch", marks=pytest.mark.torch)])
def test_the_demo_installs_starts_answers_proves_the_hand_over_and_stops(checkout, tmp_path, engine):
    environment = os.environ | {"PYTHON": sys.executable, "XDG_STATE_HOME": str(tmp_path / "state")}
    done = subprocess.run(
        ["make", "demo", "ONCE=1", "PORT=0", f"ENGINE={engine}"],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    counters = re.search(r"blocks_received=(\d+) tokens_recomputed=(\d+)", done.stdout)
    assert int(counters[1]) > 0
    assert int(counters[2]) == 1
    served = re.search(r"served by: prefill=(\S+), decode=(\S+)", done.stdout)
    assert served[1] != served[2]
    assert "curl http://127.0.0.1:" in done.stdout
    for line in promised():
        assert re.search(f"^{line}$", done.stdout, re.MULTILINE), f"{line}\n{done.stdout}"
