"""`triptych doctor`: what is missing on this machine, and how to get it."""

import hashlib
import importlib.metadata
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from triptych.failure import Failure
from triptych_operator.model_source import SourceFailed, Sources, resolve
from triptych_operator.spec import BadSpec, load_file
from triptych_operator.state_dir import default_root

NEEDED_PYTHON = (3, 11)
NEEDED_MEMORY_BYTES = 2 << 30
HASHED_BYTES = 256 << 20
"""Weights beyond this size are listed and not hashed: doctor answers in seconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `ok`, `note` (works without) or `fault`, and what to do."""

    name: str
    level: str
    message: str


def doctor(file: Path | None, *, port: int, console: Console) -> None:
    """Print every finding; with a fault among them the command fails."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _torch,
        _kernels,
        lambda: _port(port),
        _memory,
        _shared_memory,
        _state,
        _demo,
    ]
    findings = [check() for check in checks]
    if file is not None:
        findings += model_findings(file)
    marks = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "fault": "[red]fault[/]"}
    for finding in findings:
        console.print(marks[finding.level], end=" ")
        console.print(f"{finding.name}: {finding.message}", markup=False, highlight=False, soft_wrap=True)
    faults = sum(1 for finding in findings if finding.level == "fault")
    if faults:
        raise Failure(f"{faults} fault{'s' if faults > 1 else ''}; mend what is written above")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= NEEDED_PYTHON:
        return Finding("python", "ok", version)
    return Finding("python", "fault", f"{version}; install Python 3.11 or newer")


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", "note", "missing; pip install 'triptych[engine]', or use --engine sim")
    return Finding("torch", "ok", importlib.metadata.version("torch"))


def _kernels() -> Finding:
    """The optional CPU kernels of the PyTorch engine."""
    from triptych_engine.kernels import HOW_TO_BUILD, find_built  # noqa: PLC0415 - as for the demo model below

    if importlib.util.find_spec("torch") is None:
        return Finding("CPU kernels", "note", "not needed without torch")
    path = find_built(os.environ)
    if path is None:
        return Finding("CPU kernels", "note", f"not built, decoding of batches is slower; {HOW_TO_BUILD} (needs g++)")
    return Finding("CPU kernels", "ok", str(path))


def _port(port: int) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Finding("port", "note", f"{port} is in use; take another one with: triptych up --port N")
    return Finding("port", "ok", f"{port} is free")


def _memory() -> Finding:
    """Memory that is available now, where the system tells."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        kilobytes = int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return Finding("memory", "note", "this system does not tell; the demo needs about 2 GiB")
    free = f"{kilobytes / (1 << 20):.1f} GiB available"
    if kilobytes * 1024 < NEEDED_MEMORY_BYTES:
        return Finding("memory", "note", f"{free}; close programs, or use --engine sim")
    return Finding("memory", "ok", free)


def _shared_memory() -> Finding:
    """KV pools are anonymous shared memory; without memfd they are unlinked temporary files."""
    if hasattr(os, "memfd_create"):
        try:
            os.close(os.memfd_create("triptych-doctor", os.MFD_CLOEXEC))
            return Finding("shared memory", "ok", "memfd")
        except OSError:
            pass
    folder = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Finding("shared memory", "ok", str(folder))
    return Finding("shared memory", "note", "no memfd and no shared folder; KV pools use slower temporary files")


def _state() -> Finding:
    root = default_root(os.environ)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return Finding("state", "ok", str(root))
    except OSError as error:
        return Finding("state", "fault", f"{root}: {error.strerror}; set XDG_STATE_HOME to a folder of yours")


def _demo() -> Finding:
    try:
        from triptych_engine.demo import demo_model_dir  # noqa: PLC0415 - a broken install is a finding, not a crash

        return Finding("demo model", "ok", str(demo_model_dir()))
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("demo model", "note", f"not there ({error}); reinstall triptych, or use --engine sim")


def model_findings(file: Path) -> list[Finding]:
    """Is the file sound, is its model's folder readable, and which hashes do its files have?"""
    try:
        service = load_file(file).service
    except BadSpec as bad:
        return [Finding("file", "fault", str(bad))]
    found = [Finding("file", "ok", f"{service.name}, {len(service.ignored_fields)} fields not acted on yet")]
    if service.spec.model.source.startswith("hf://"):
        return [*found, Finding("model", "note", "it is fetched at the first triptych up")]
    try:
        folder = resolve(service.spec.model, Sources(_demo_folder, file.resolve().parent, os.environ)).path
    except SourceFailed as failed:
        return [*found, Finding("model", "fault", str(failed))]
    return [*found, *(_file_finding(path) for path in sorted(folder.iterdir()) if path.is_file())]


def _demo_folder() -> Path:
    from triptych_engine.demo import demo_model_dir  # noqa: PLC0415 - other models do not need it

    return Path(demo_model_dir())


def _file_finding(path: Path) -> Finding:
    try:
        size = path.stat().st_size
        if size > HASHED_BYTES:
            return Finding(path.name, "ok", f"{size} bytes")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Finding(path.name, "fault", f"{error.strerror}; make it readable for this user")
    return Finding(path.name, "ok", f"{size} bytes, sha256 {digest}")
