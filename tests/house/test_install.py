"""The install script: a clear word where it cannot work, and no work where nothing changed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cksum", "dirname")


@pytest.fixture
def checkout(tmp_path):
    """What the script reads, in a folder of its own."""
    folder = tmp_path / "checkout"
    for name in ("scripts", "constraints"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def tools(tmp_path):
    """A PATH with no Python in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def program(path, script):
    path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
    path.chmod(0o755)


def install(checkout, tools, *arguments):
    command = ["bash", str(checkout / "scripts" / "install.sh"), *arguments]
    return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False, timeout=60)


def record_install(checkout, name):
    """What a finished install of one set leaves behind."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    program(binaries / "python", f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi; echo "called: $*"')

    def cksum(path):
        return subprocess.run(["cksum"], input=path.read_text(), capture_output=True, text=True, check=True).stdout

    (checkout / ".venv" / f".installed-{name}").write_text(cksum(checkout / "constraints" / f"{name}.txt"))
    stamp = f"{checkout.resolve()} {cksum(checkout / 'pyproject.toml')}"
    (checkout / ".venv" / ".installed-project").write_text(stamp)


@pytest.mark.parametrize("arguments", [[], ["all"]], ids=["nothing", "an unknown set"])
def test_it_says_which_sets_there_are(checkout, tools, arguments):
    done = install(checkout, tools, *arguments)
    assert done.returncode == 2
    assert "base|engine|dev" in done.stderr


def test_a_machine_without_a_new_enough_python_is_told_so(checkout, tools):
    program(tools / "python3", "exit 1")
    done = install(checkout, tools, "base")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr


def test_a_python_without_venv_is_told_what_to_install(checkout, tools):
    program(tools / "python3", '[ "$1" = -c ]')
    done = install(checkout, tools, "base")
    assert done.returncode == 1
    assert "venv module" in done.stderr


@pytest.mark.parametrize(("held", "wanted"), [("base", "base"), ("dev", "dev"), ("dev", "base"), ("engine", "base")])
def test_a_set_that_is_there_already_is_not_installed_again(checkout, tools, held, wanted):
    record_install(checkout, held)
    done = install(checkout, tools, wanted)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_larger_set_is_installed_by_version_and_hash_and_only_as_wheels(checkout, tools):
    record_install(checkout, "base")
    done = install(checkout, tools, "dev")
    assert done.returncode == 0
    assert "--require-hashes --only-binary :all: -r constraints/dev.txt" in done.stdout
    assert "--editable" not in done.stdout


def test_changed_pins_are_installed_again_and_a_changed_project_alone_is_only_linked(checkout, tools):
    record_install(checkout, "base")
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    done = install(checkout, tools, "base")
    assert "--no-deps --no-build-isolation --editable ." in done.stdout
    assert "--require-hashes" not in done.stdout
    with (checkout / "constraints" / "base.txt").open("a") as pins:
        pins.write("# changed\n")
    assert "--require-hashes" in install(checkout, tools, "base").stdout
    assert install(checkout, tools, "base").stdout == ""
