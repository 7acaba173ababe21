"""The wheel that users get: built from the tree, installed in a fresh environment, and run there."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
PACKAGES = ("triptych", "triptych_contract", "triptych_operator", "triptych_router", "triptych_engine")


def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, *PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (found,) = folder.glob("triptych-*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """A new environment with the pinned packages of the base set and the wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pinned = ("--require-hashes", "--only-binary", ":all:", "-r", str(ROOT / "constraints" / "base.txt"))
    run(python, *PIP, "install", *pinned)
    run(python, *PIP, "install", "--no-deps", str(wheel))
    return folder / "bin"


def test_the_wheel_holds_five_packages_their_types_and_the_licence_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".pyc", "conftest.py"))]


def test_what_the_programs_read_beside_their_code_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "triptych_engine/ops/native/paged_attention.cpp" in names
    for root, package in [("contract", "triptych_contract"), ("operator", "triptych_operator"), ("cli", "triptych")]:
        folder = ROOT / root
        wanted = {
            str(path.relative_to(folder))
            for path in (folder / package).rglob("*")
            if path.is_file() and path.suffix in {".py", ".yaml", ".json", ".html"}
        }
        assert wanted <= names


def test_the_demo_model_is_in_the_wheel_without_what_made_it(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if "/demo_model/" in name}
    files = [path.name for path in (ROOT / "models" / "demo").iterdir() if path.is_file() and path.suffix != ".py"]
    assert names == {f"triptych_engine/demo_model/{name}" for name in files}
    assert "config.json" in files


def test_all_packages_are_imported_without_torch(fresh, tmp_path):
    code = f"import sys, {', '.join(PACKAGES)}, triptych_engine.main; assert 'torch' not in sys.modules"
    run(fresh / "python", "-I", "-c", code, cwd=tmp_path)


@pytest.mark.parametrize("program", ["triptych", "triptych-engine", "triptych-router"])
def test_every_program_tells_its_flags(fresh, program, tmp_path):
    assert "--help" in run(fresh / program, "--help", cwd=tmp_path)


def test_the_command_tells_the_version_of_the_package(fresh, tmp_path):
    code = "import triptych_contract; print(triptych_contract.__version__)"
    version = run(fresh / "python", "-c", code, cwd=tmp_path)
    assert version.strip() in run(fresh / "triptych", "version", cwd=tmp_path)


def test_a_service_of_the_simulated_engine_runs_from_the_wheel_and_hands_over(fresh, tmp_path):
    example = ROOT / "examples" / "laptop-sim.yaml"
    environment = {"PATH": f"{fresh}:/usr/bin:/bin", "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [
        fresh / "triptych",
        "up",
        "-f",
        str(example),
        "--engine",
        "sim",
        "--port",
        "0",
        "--ask",
        "Hello?",
        "--once",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "decode" in done.stdout
