"""Discovery in a directory of this machine: one JSON file a record, held under a lock by its writer.

A record is written to a hidden temporary file, locked, and renamed into place, so a reader sees all of it
or none of it. The kernel drops the lock when the writer dies, however it dies; a record that nobody locks is
dead and is left out until an instance of the same id replaces it. Nothing is ever repaired by guessing.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from triptych_contract.codec import decode_json, encode_json
from triptych_contract.errors import TriptychError
from triptych_contract.instance import InstanceRecord

MAX_RECORD_BYTES = 16384
MAX_RECORDS = 1024
WATCH_INTERVAL_S = 0.1
TEMPORARY_AGE_S = 60.0
_SUFFIX = ".instance.json"


class LocalRegistry:
    """The records of one service in one directory.

    Args:
        directory: Made if it is missing, readable by its owner alone.
        watch_interval_s: How often a watch looks.
    """

    def __init__(self, directory: Path, *, watch_interval_s: float = WATCH_INTERVAL_S) -> None:
        self._directory = directory
        self._watch_interval_s = watch_interval_s
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def register(self, record: InstanceRecord) -> "_LocalRegistration":
        """Publish a record under its id; it stands until it is withdrawn or this process ends."""
        record.check()
        self._sweep()
        temporary = self._directory / f".{record.id}.{record.incarnation}.tmp"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, encode_json(record))
            os.rename(temporary, self._path(record.id))
        except OSError:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        return _LocalRegistration(self._path(record.id), descriptor)

    async def snapshot(self) -> tuple[InstanceRecord, ...]:
        """All records of living writers, ordered by instance id."""
        found = (_read(path) for path in self._paths())
        return tuple(record for record in found if record is not None)

    async def watch(self) -> AsyncIterator[tuple[InstanceRecord, ...]]:
        """The present set, then the whole set after each change."""
        seen: tuple[InstanceRecord, ...] | None = None
        while True:
            now = await self.snapshot()
            if now != seen:
                seen = now
                yield now
            await asyncio.sleep(self._watch_interval_s)

    def _path(self, instance_id: str) -> Path:
        return self._directory / f"{instance_id}{_SUFFIX}"

    def _paths(self) -> list[Path]:
        try:
            return sorted(self._directory.glob(f"[!.]*{_SUFFIX}"))[:MAX_RECORDS]
        except OSError:
            return []

    def _sweep(self) -> None:
        """Remove old temporary files of writers that died between creating and renaming them."""
        for path in self._directory.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > TEMPORARY_AGE_S:
                    path.unlink()


class _LocalRegistration:
    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    async def withdraw(self) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                self._path.unlink()
        except FileNotFoundError:
            pass
        finally:
            os.close(descriptor)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


def _is_free(descriptor: int) -> bool:
    """True if no living process holds the lock; the probe itself lets go at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _read(path: Path) -> InstanceRecord | None:
    descriptor = _open(path)
    if descriptor is None:
        return None
    try:
        if _is_free(descriptor):
            return None
        record = decode_json(os.read(descriptor, MAX_RECORD_BYTES + 1), InstanceRecord, limit_bytes=MAX_RECORD_BYTES)
        record.check()
    except (OSError, TriptychError):
        return None
    finally:
        os.close(descriptor)
    return record if path.name == f"{record.id}{_SUFFIX}" else None
