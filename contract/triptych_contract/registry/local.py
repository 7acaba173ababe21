"""Discovery in a directory of this machine: one JSON file a record, held under a lock by its writer.

A record is written to a hidden temporary file, locked, and renamed into place, so a reader sees all of it
or none of it. The kernel drops the lock when the writer dies, however it dies; a record that nobody locks is
dead and is left out until an instance of the same id replaces it, or a later registration removes it.
Changes of the directory's entries happen under a lock of the directory, so that nobody removes what another
writer has just renamed into place. Records of other users are ignored: an address in a record is dialled.
"""

import asyncio
import contextlib
import fcntl
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

from triptych_contract.codec import decode_json, encode_json
from triptych_contract.errors import TriptychError
from triptych_contract.instance import InstanceRecord

MAX_RECORD_BYTES = 16384
MAX_RECORDS = 1024
WATCH_INTERVAL_S = 0.1
STALE_AGE_S = 60.0
"""Files of dead writers are removed when they are this old, so that a crash can still be looked into."""
DIRECTORY_LOCK_S = 2.0
"""Longest wait for the directory's lock; its holders do a few system calls and no more."""
_LOCK_RETRY_S = 0.005
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
        async with _exclusive(self._directory):
            self._sweep()
            return self._publish(record)

    def _publish(self, record: InstanceRecord) -> "_LocalRegistration":
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
        """Remove old files of writers that died before or after they renamed them into place."""
        oldest_s = time.time() - STALE_AGE_S
        for path in (*self._directory.glob(".*.tmp"), *self._directory.glob(f"[!.]*{_SUFFIX}")):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < oldest_s and _is_dead(path):
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
            async with _exclusive(self._path.parent):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    self._path.unlink()
        except (FileNotFoundError, TimeoutError):
            pass  # the record is dead all the same once its lock is gone
        finally:
            os.close(descriptor)


@contextlib.asynccontextmanager
async def _exclusive(directory: Path) -> AsyncIterator[None]:
    """Hold the directory's lock.

    Raises:
        TimeoutError: Another process holds it for longer than `DIRECTORY_LOCK_S`; it is an `OSError`.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        deadline_s = time.monotonic() + DIRECTORY_LOCK_S
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the directory of records is locked by another process")
            await asyncio.sleep(_LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _open(path: Path) -> int | None:
    """A descriptor of a regular file of this user; a pipe in the directory must not block the reader."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    return None


def _is_dead(path: Path) -> bool:
    """True for a file of this user whose lock no living process holds."""
    descriptor = _open(path)
    if descriptor is None:
        return False
    try:
        return _is_free(descriptor)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    """True if no living process holds the lock; the probe itself lets go at once."""
    if not _try_lock(descriptor, fcntl.LOCK_SH):
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
