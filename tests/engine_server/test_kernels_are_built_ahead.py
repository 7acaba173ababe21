"""`triptych-engine --build-kernels`: what it says when it cannot, and that no start compiles."""

from pathlib import Path

import pytest

from triptych_engine import kernels
from triptych_engine.server.supervise import core_config, core_environment
from triptych_engine.settings import read_settings

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs the engine extra")


def script(folder: Path, text: str) -> str:
    """A program that stands in for the compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def build_with(compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Exit status of the program."""
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(SystemExit) as ended:
        read_settings(["--build-kernels"])
    return ended.value.code


class TestBuilding:
    def test_without_a_compiler_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert build_with("no-such-compiler", tmp_path, monkeypatch) == 1
        assert "Install g++" in capsys.readouterr().err

    def test_that_fails_shows_the_compilers_words_and_leaves_nothing_to_load(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert build_with(script(tmp_path, "echo out of cheese >&2; exit 3"), tmp_path, monkeypatch) == 1
        assert "out of cheese" in capsys.readouterr().err
        assert kernels.find_built({"XDG_CACHE_HOME": str(tmp_path)}) is None
        assert not [path for path in (tmp_path / "triptych").rglob("*") if path.is_file()]

    def test_prints_the_library_that_a_start_finds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        compiler = script(tmp_path, 'for last; do :; done; echo made > "$last"')
        assert build_with(compiler, tmp_path, monkeypatch) == 0
        path = Path(capsys.readouterr().out.strip())
        assert kernels.find_built({"XDG_CACHE_HOME": str(tmp_path)}) == path
        assert [part.stat().st_mode & 0o777 for part in (path, *path.parents[:3])] == [0o500, 0o700, 0o700, 0o700]


class TestStarting:
    def test_the_core_is_told_whether_to_use_them(self) -> None:
        assert core_config(read_settings(["--sim"])).kernels == "auto"
        assert core_config(read_settings(["--sim", "--kernels", "off"])).kernels == "off"

    def test_the_core_gets_huge_pages_unless_its_environment_says_otherwise(self) -> None:
        assert core_environment({"A": "1"}) == {"A": "1", "THP_MEM_ALLOC_ENABLE": "1"}
        assert core_environment({"THP_MEM_ALLOC_ENABLE": "0"}) == {"THP_MEM_ALLOC_ENABLE": "0"}
