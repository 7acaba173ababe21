"""The state directory of one service on this machine: what `triptych status` and `down` find it by.

NAME/lock            held by the one running operator of this name; the kernel drops it when that dies
NAME/service.json    who runs, where, and what was last seen; replaced atomically
NAME/token           the service token, readable by its owner alone, minted at every start
NAME/instances/      discovery records
NAME/logs/           one capped file for each child
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from triptych_operator.status import ServiceStatus

ENTRY = "service.json"
_TOKEN_BYTES = 32


class ChildEntry(msgspec.Struct, frozen=True, rename="camel"):
    """A child as its operator last saw it."""

    name: str
    component: str
    pid: int | None
    alive: bool
    starts: int = 0


class ServiceEntry(msgspec.Struct, frozen=True, rename="camel"):
    """`service.json`: hints for other programs; what an instance itself answers is truer."""

    name: str
    pid: int
    file: str
    url: str
    engine: str
    model: str
    status: ServiceStatus
    children: tuple[ChildEntry, ...] = ()
    version: int = 1


class AlreadyRunning(Exception):
    """Another operator holds this name."""


def default_root(environ: Mapping[str, str]) -> Path:
    """Where services of this user keep their state: `$XDG_STATE_HOME/triptych`, else `~/.local/state/triptych`."""
    base = environ.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "triptych"


class StateDirectory:
    """One service's directory.

    Args:
        path: Made on first use, for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def instances(self) -> Path:
        """Discovery records."""
        return self.path / "instances"

    @property
    def token_file(self) -> Path:
        """The service token."""
        return self.path / "token"

    @property
    def logs(self) -> Path:
        """Log files, one for each child."""
        return self.path / "logs"

    def prepare(self) -> None:
        """Make the directories, readable by their owner alone."""
        for directory in (self.path, self.instances, self.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the name for the time of the block; what an earlier holder wrote of itself is gone from then on.

        Raises:
            AlreadyRunning: A living process holds it; the message says what to do.
        """
        self.prepare()
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise AlreadyRunning(self._holder()) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode("ascii"))
            (self.path / ENTRY).unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """True while a living operator holds the name."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def started_at_s(self) -> float:
        """When the name was last held, by the clock of the file system; 0 if it never was."""
        try:
            return (self.path / "lock").stat().st_mtime
        except OSError:
            return 0.0

    def holder(self) -> int | None:
        """The process that holds the name, None if nobody does."""
        try:
            pid = int((self.path / "lock").read_text("ascii"))
        except (OSError, ValueError):
            return None
        return pid if self.is_held() else None

    def mint_token(self) -> str:
        """A new service token, in place of any older one."""
        token = secrets.token_hex(_TOKEN_BYTES)
        self._replace(self.token_file, token.encode("ascii"))
        return token

    def token(self) -> str | None:
        """The service token, None if there is none to read."""
        try:
            return self.token_file.read_text("ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def write_entry(self, entry: ServiceEntry) -> None:
        """Replace `service.json`; a reader sees the old one or the new one."""
        self._replace(self.path / ENTRY, msgspec.json.encode(entry))

    def entry(self) -> ServiceEntry | None:
        """`service.json`, None if it is missing or not readable."""
        try:
            return msgspec.json.decode((self.path / ENTRY).read_bytes(), type=ServiceEntry)
        except (OSError, msgspec.MsgspecError):
            return None

    def _holder(self) -> str:
        entry = self.entry()
        who = f" (process {self.holder()}, {(entry.url if entry else '') or 'starting'})"
        name = self.path.name
        return f"a service named {name} is already running{who}; stop it with: triptych down {name}"

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)


def services(root: Path) -> list[StateDirectory]:
    """Every service that has a state directory, by name."""
    try:
        found = sorted(path for path in root.iterdir() if (path / "lock").exists())
    except OSError:
        return []
    return [StateDirectory(path) for path in found]
