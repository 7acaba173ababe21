"""API keys: a file with one `name:sha256hex` a line, read again when it changes. The name is the tenant.

Hashes are compared, in constant time, and all of them each time, so that neither content nor place of a key
shows in the time of an answer.
"""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from triptych_contract.clock import Clock
from triptych_contract.errors import Unauthorized
from triptych_contract.ids import is_name
from triptych_router.log import log

MAX_FILE_BYTES = 1024 * 1024
MAX_KEY_CHARACTERS = 4096
CHECK_INTERVAL_S = 1.0
_HASH = re.compile(r"[0-9a-f]{64}")
Stamp = tuple[int, int, int]


class KeyFileError(ValueError):
    """A key file that cannot be used; the text names the lines at fault, never their content."""


def parse_keys(text: str) -> Mapping[str, bytes]:
    """Names and SHA-256 hashes.

    Raises:
        KeyFileError: A line that is no `name:sha256hex`, a name given twice, or no key at all.
    """
    keys: dict[str, bytes] = {}
    faulty: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, _, digest = stripped.rpartition(":")
        if not is_name(name) or not _HASH.fullmatch(digest.lower()) or name in keys:
            faulty.append(str(number))
            continue
        keys[name] = bytes.fromhex(digest)
    if faulty:
        raise KeyFileError(f"--api-keys: line {', '.join(faulty[:10])} must be a new name:sha256hex")
    if not keys:
        raise KeyFileError("--api-keys holds no key")
    return keys


def read_keys(path: Path) -> Mapping[str, bytes]:
    """Read a key file; raises `KeyFileError`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise KeyFileError("--api-keys is too large")
        return parse_keys(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        raise KeyFileError("--api-keys cannot be read as text") from None


class ApiKeys:
    """The keys of a file, which is looked at once a second when somebody asks.

    A file that has become unreadable leaves the keys as they were, with a line in the log.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._keys = read_keys(path)
        self._stamp = _stamp(path)
        self._checked_s = clock.now_s()

    def tenant(self, authorization: str) -> str:
        """The name of the key in an `Authorization` header.

        Raises:
            Unauthorized: No key, or one that is not in the file.
        """
        self._reload()
        digest = hashlib.sha256(_bearer(authorization).encode("utf-8", "surrogateescape")).digest()
        found = ""
        for name, wanted in self._keys.items():
            if hmac.compare_digest(digest, wanted):
                found = name
        if not found:
            raise Unauthorized("The API key is missing or wrong.")
        return found

    def _reload(self) -> None:
        now_s = self._clock.now_s()
        if now_s - self._checked_s < CHECK_INTERVAL_S:
            return
        self._checked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            log(logging.ERROR, "api keys not reloaded", cause=str(error))


def is_service_token(authorization: str, token: str) -> bool:
    """True if the header carries the service token; never for an empty one."""
    given = hashlib.sha256(_bearer(authorization).encode("utf-8", "surrogateescape")).digest()
    return bool(token) and hmac.compare_digest(given, hashlib.sha256(token.encode()).digest())


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip()[:MAX_KEY_CHARACTERS] if scheme.lower() == "bearer" else ""


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
