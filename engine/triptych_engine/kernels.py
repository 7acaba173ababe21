"""The optional CPU kernels: compiled ahead by the system's compiler, kept in the user's cache. Imports no torch.

Nothing here runs at a normal start but `find_built`. The library lies in a folder named by a hash of its source, of
torch's version, of the machine and of the flags, so that a library is never used with what it was not made for.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).parent / "ops" / "native" / "paged_attention.cpp"
BUILD_DEADLINE_S = 300.0
COMPILE_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-Wall", "-Wno-psabi")
HOW_TO_BUILD = "triptych-engine --build-kernels"

_LIBRARY = "paged_attention.so"
_SHOWN_CHARACTERS = 2000


class BuildFailed(Exception):
    """The kernels could not be compiled; the message says what to do."""


def library_path(environ: Mapping[str, str]) -> Path:
    """Where the library of this source, torch and machine lies once it is built.

    Raises:
        BuildFailed: torch is not installed.
    """
    digest = hashlib.sha256(SOURCE.read_bytes())
    for part in (_torch_version(), platform.machine(), *COMPILE_FLAGS):
        digest.update(b"\0" + part.encode())
    return _cache_root(environ) / "triptych" / "kernels" / digest.hexdigest()[:32] / _LIBRARY


def find_built(environ: Mapping[str, str]) -> Path | None:
    """The library if it is built and nobody else can have put or changed it; None otherwise."""
    try:
        path = library_path(environ)
    except (OSError, BuildFailed):
        return None
    # Code is loaded from here: each folder up to the cache and the file itself must be closed to other users.
    return path if all(_is_ours(part) for part in (path, *path.parents[:3])) else None


def build(environ: Mapping[str, str]) -> Path:
    """Compile and link the library, and put it in its place at once.

    Args:
        environ: `CXX` names another compiler than g++; `XDG_CACHE_HOME` another cache than `~/.cache`.

    Raises:
        BuildFailed: There is no compiler or no torch, or the compiler failed.
    """
    compiler = shutil.which(environ.get("CXX") or "g++")
    if compiler is None:
        raise BuildFailed("There is no C++ compiler. Install g++ or name one in CXX; the engine also runs without.")
    path = library_path(environ)
    torch_dir = _torch_dir()
    try:
        for folder in reversed(path.parents[:3]):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            objects, made = Path(scratch) / "kernels.o", Path(scratch) / _LIBRARY
            _call([compiler, *COMPILE_FLAGS, f"-I{torch_dir / 'include'}", "-c", str(SOURCE), "-o", str(objects)])
            # OpenMP is named to the compiler only: the symbols come from the runtime that torch brings, for two of
            # them in one process would each keep threads that take the other's cores.
            libraries = [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10"]
            _call([compiler, "-shared", str(objects), *libraries, "-o", str(made)])
            made.chmod(0o500)
            made.replace(path)
    except OSError as error:
        raise BuildFailed(f"The kernels cannot be written to {path.parent}: {error.strerror}.") from error
    return path


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - a list of arguments made here
            command, capture_output=True, text=True, errors="replace", check=False, timeout=BUILD_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"The compiler took longer than {BUILD_DEADLINE_S:.0f} s.") from None
    if done.returncode:
        raise BuildFailed(f"The compiler failed:\n{done.stderr[-_SHOWN_CHARACTERS:]}")


def _is_ours(path: Path) -> bool:
    """Owned by this user or root, writable by nobody else, and no link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    ours = status.st_uid in (0, os.geteuid())
    kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return ours and kind and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _cache_root(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME", "")
    return Path(base) if os.path.isabs(base) else Path.home() / ".cache"


def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise BuildFailed("PyTorch is not installed; install triptych with its engine extra.") from None


def _torch_dir() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildFailed("PyTorch is not installed; install triptych with its engine extra.")
    return Path(spec.origin).parent
