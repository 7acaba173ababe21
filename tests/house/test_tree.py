"""The shape of the tree: source roots, file names, install sets, make targets."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("contract", "operator", "router", "engine", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETS = {name: (ROOT / "constraints" / f"{name}.txt").read_text() for name in ("base", "engine", "dev")}
FLOORS = {"aiohttp": (3, 14, 3), "jinja2": (3, 1, 6), "msgspec": (0, 20), "pyyaml": (6, 0), "safetensors": (0, 4)}
"""Versions below these have known holes that the programs would be open to."""


def pins(text):
    """Name and condition → (version, hashes) of every requirement of a constraints file."""
    entries = re.split(r"\n(?=[a-zA-Z0-9])", text.replace("\\\n", " ").strip())
    found = {}
    for entry in entries:
        requirement, *hashes = entry.split("--hash=")
        name, version, condition = re.fullmatch(r"([\w.-]+)==([\w.+!]+)\s*(;.*)?\s*", requirement).groups()
        found[name, (condition or "").strip()] = (version, frozenset(word.strip() for word in hashes))
    return found


@pytest.mark.parametrize("folder", [*SOURCE_ROOTS, "tests", "bench", "docs"])
def test_a_top_folder_is_never_a_package_because_operator_would_hide_the_standard_module(folder):
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_python_works_in_the_root_without_any_start_up_hook():
    code = "import collections, asyncio, operator; assert operator.eq(1, 1)"
    code = f"import sys; sys.path.insert(0, ''); {code}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_a_source_root_holds_one_package_that_ships_its_types(root):
    packages = [path for path in (ROOT / root).iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [path.name for path in packages] == ["triptych" if root == "cli" else f"triptych_{root}"]
    assert (packages[0] / "py.typed").is_file()
    assert f"{root}/{packages[0].name}" in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]


def test_test_files_have_distinct_names_so_that_a_failure_names_one():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_module_is_a_catch_all():
    found = [path for root in SOURCE_ROOTS for path in (ROOT / root).rglob("*.py")]
    assert not [path for path in found if path.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize("name", SETS)
def test_every_pin_has_a_version_and_hashes(name):
    found = pins(SETS[name])
    assert len(found) > 40
    assert all(hashes and all(one.startswith("sha256:") for one in hashes) for _, hashes in found.values())


@pytest.mark.parametrize(("smaller", "larger"), [("base", "engine"), ("engine", "dev")])
def test_a_smaller_set_is_part_of_the_larger_one_with_equal_versions_and_hashes(smaller, larger):
    part, whole = (
        {(name, version): hashes for (name, _), (version, hashes) in pins(SETS[one]).items()}
        for one in (smaller, larger)
    )
    assert part.items() <= whole.items()


def test_only_the_engine_set_brings_torch():
    names = {name: {requirement for requirement, _ in pins(text)} for name, text in SETS.items()}
    assert "torch" not in names["base"]
    assert {"torch", "safetensors"} <= names["engine"]
    assert not {"etcd3", "transformers", "pickle5", "dill", "cloudpickle"} & names["engine"]


@pytest.mark.parametrize("package", FLOORS)
def test_pins_are_above_the_versions_with_known_holes(package):
    found = [version for (name, _), (version, _) in pins(SETS["dev"]).items() if name == package]
    assert found
    for version in found:
        assert tuple(map(int, version.split(".")[: len(FLOORS[package])])) >= FLOORS[package]


def test_what_builds_the_project_is_pinned_alike_everywhere():
    build = (ROOT / "constraints" / "build.in").read_text()
    for requirement in PROJECT["build-system"]["requires"]:
        assert requirement in build
        assert requirement in PROJECT["project"]["optional-dependencies"]["dev"]
        assert requirement in SETS["base"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo"], ["install.sh engine", "up -f examples/laptop.yaml --engine torch"]),
        (["demo", "ENGINE=sim", "ONCE=1"], ["install.sh base", "--engine sim", "--once"]),
        (["test"], ["install.sh dev", "check.sh", 'pytest -m "not full"']),
        (["test-full"], ["install.sh dev", "check.sh", "pytest"]),
        (["check"], ["install.sh dev", "check.sh"]),
        (["bench"], ["install.sh dev", "-m bench"]),
    ],
    ids=" ".join,
)
def test_make_targets_do_what_the_readme_says(arguments, expected):
    shown = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(part in shown for part in expected)


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()
