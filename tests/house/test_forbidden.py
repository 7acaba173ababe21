"""What must not stand in the sources: ways to run foreign code, wildcard binds, hosts of registries, local paths."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("contract", "operator", "router", "engine", "cli")
SOURCES = sorted(path for root in SOURCE_ROOTS for path in (ROOT / root).rglob("*.py"))
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "telnetlib", "xmlrpc"}
BANNED_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load"}
BANNED_ARGUMENTS = {"trust_remote_code", "weights_only", "allow_pickle"}
SHELL_CALLS = {"create_subprocess_shell", "getoutput", "getstatusoutput", "popen"}
LINUX_ONLY = {"prctl", "pidfd_open", "sched_setaffinity"}


@cache
def parsed(path):
    return list(ast.walk(ast.parse(path.read_text())))


def dotted(node):
    """`a.b.c` of an expression, as written."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(path):
    for node in parsed(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def calls(path):
    return [node for node in parsed(path) if isinstance(node, ast.Call)]


def tracked_texts():
    """Every text file that git knows or would add, without the lists of hashes."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in {".safetensors", ".png", ".json"} and path.name != "LICENSE":
            yield path, path.read_text("utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_runs_no_foreign_code(path):
    assert not {name.split(".")[0] for name in imported(path)} & BANNED_MODULES
    assert not {dotted(call.func) for call in calls(path)} & BANNED_CALLS
    for call in calls(path):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert not set(given) & BANNED_ARGUMENTS
        shell = given.get("shell")
        assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False)


def test_subprocesses_get_lists_and_never_a_shell_string():
    for path in SOURCES:
        names = {dotted(call.func) for call in calls(path)}
        assert not {name.rsplit(".", 1)[-1] for name in names} & SHELL_CALLS


def test_nothing_binds_all_interfaces_by_default():
    wildcards = {".".join("0000"), "::", "[::]"}
    for path in SOURCES:
        found = [node.value for node in parsed(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not wildcards & set(found), path


def test_secrets_are_compared_in_constant_time():
    words = re.compile(r"(service_token|secret|api_?key|token_hash|key_hash)$")
    for path in SOURCES:
        for node in parsed(path):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                sides = [dotted(side).rsplit(".", 1)[-1] for side in (node.left, node.comparators[0])]
                assert not any(words.search(side) for side in sides), f"{path}:{node.lineno}"


def test_calls_that_only_linux_knows_stand_in_one_module_per_program():
    for path in SOURCES:
        used = {node.attr for node in parsed(path) if isinstance(node, ast.Attribute)} & LINUX_ONLY
        assert not used or path.name == "linux.py", path


def test_install_and_build_files_name_no_host():
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", *(ROOT / "scripts").iterdir()]
    files += (ROOT / "constraints").iterdir()
    for path in files:
        text = path.read_text()
        assert "://" not in text, path
        assert not re.search(r"--(extra-)?index-url|--trusted-host|--find-links", text), path


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    hosts = [
        ".".join(words) for words in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "com"), ("docker", "io"))
    ]
    paths = [f"/{word}/" for word in ("root", "home", "work", "Users")] + [f"{ROOT}/"]
    for path, text in tracked_texts():
        assert not [word for word in (*hosts, *paths) if word in text], path


def test_no_file_holds_unfinished_business():
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")
    for path, text in tracked_texts():
        assert not words.search(text), path


def test_there_are_no_files_of_ci_vendors():
    assert not [name for name in (".github", ".gitlab-ci.yml", ".circleci", ".travis.yml") if (ROOT / name).exists()]
