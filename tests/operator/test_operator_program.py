"""`triptych-operator`: what it says and how it exits when it cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SOUND = (
    "apiVersion: triptych.dev/v1alpha1\nkind: LLMService\nmetadata: {name: demo}\nspec: {model: {source: 'demo://'}}\n"
)


def run(tmp_path: Path, text: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    path = tmp_path / "llm.yaml"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "triptych_operator.main", "-f", str(path), *flags],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_bad_file_exits_with_two_and_all_faults(tmp_path: Path) -> None:
    result = run(tmp_path, SOUND.replace("demo://", "nowhere") + "extra: 1\n")
    assert result.returncode == 2
    assert "2 faults" in result.stderr


def test_the_demo_model_is_out_of_its_reach(tmp_path: Path) -> None:
    result = run(tmp_path, SOUND.replace("spec: {", "spec: {engine: {profile: cpu}, "))
    assert result.returncode == 1
    assert result.stderr.startswith("triptych-operator: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, SOUND, "--model", str(tmp_path / "none"))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


def test_an_unknown_flag_is_a_usage_error(tmp_path: Path) -> None:
    assert run(tmp_path, SOUND, "--planet", "mars").returncode == 2
