"""A log file with a size cap: when it is full it becomes `NAME.log.1`, in place of the older one."""

import contextlib
from pathlib import Path

CAP_BYTES = 8 * 1024 * 1024
"""Two files of this size hold hours of one line a request; ten children stay under 160 MiB."""


class LogFile:
    """Appends lines of one child.

    Args:
        path: Of the newest file.
        cap_bytes: Size at which a new file is begun.
    """

    def __init__(self, path: Path, *, cap_bytes: int = CAP_BYTES) -> None:
        self._path = path
        self._cap_bytes = cap_bytes
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def write(self, line: bytes) -> None:
        """Append one line; its newline is added where it lacks. A full disk loses lines and stops nobody."""
        data = line.rstrip(b"\r\n") + b"\n"
        with contextlib.suppress(OSError):
            if self._size + len(data) > self._cap_bytes and self._size:
                self._turn()
            self._file.write(data)
            self._size += len(data)

    def close(self) -> None:
        """No more lines."""
        self._file.close()

    def _turn(self) -> None:
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        full, self._file = self._file, self._path.open("ab", buffering=0)
        full.close()
        self._size = 0
