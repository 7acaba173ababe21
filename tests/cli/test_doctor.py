"""`triptych doctor`, `version` and `--help`: run in this process, nothing is started."""

import hashlib
import socket
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from triptych.doctor import doctor, model_findings
from triptych.failure import Failure
from triptych.main import app
from triptych_contract import __version__


def write(folder: Path, source: str) -> Path:
    path = folder / "llm.yaml"
    path.write_text(
        "apiVersion: triptych.dev/v1alpha1\nkind: LLMService\nmetadata: {name: demo}\n"
        f"spec:\n  model: {{source: '{source}'}}\n"
    )
    return path


@pytest.fixture
def console() -> Console:
    return Console(width=200, record=True, quiet=False)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_busy_port_is_a_note_with_the_way_out(console: Console) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        doctor(None, port=port, console=console)
    assert f"{port} is in use; take another one with: triptych up --port N" in console.export_text()


def test_missing_torch_is_a_note_that_says_how_to_get_it(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    doctor(None, port=0, console=console)
    assert "torch: missing; pip install 'triptych[engine]', or use --engine sim" in console.export_text()


def test_kernels_that_are_not_built_are_a_note_that_says_how_to_build_them(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    doctor(None, port=0, console=console)
    assert "not built, decoding of batches is slower; triptych-engine --build-kernels" in console.export_text()


def test_a_state_folder_that_cannot_be_written_is_a_fault(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(Failure, match="1 fault; mend what is written above"):
        doctor(None, port=0, console=console)
    assert "set XDG_STATE_HOME to a folder of yours" in console.export_text()


def test_files_of_a_model_are_listed_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    found = {finding.name: finding.message for finding in model_findings(write(tmp_path, "host://m"))}
    assert found["config.json"] == f"2 bytes, sha256 {hashlib.sha256(b'{}').hexdigest()}"


def test_a_bad_file_is_a_fault_with_all_that_is_wrong(tmp_path: Path) -> None:
    (finding,) = model_findings(write(tmp_path, "nowhere"))
    assert finding.level == "fault"
    assert "spec.model.source" in finding.message


def test_a_missing_folder_is_a_fault(tmp_path: Path) -> None:
    findings = model_findings(write(tmp_path, "host://missing"))
    assert [finding.level for finding in findings] == ["ok", "fault"]


def test_version_is_that_of_the_distribution() -> None:
    assert CliRunner().invoke(app, ["version"]).stdout.startswith(f"triptych {__version__} ")


@pytest.mark.parametrize("command", ["up", "down", "status", "logs", "chat", "doctor", "version"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
