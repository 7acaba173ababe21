"""Identifiers: 128 random bits as 32 lower-case hex digits.

The source of randomness is passed in, so that tests and the simulator get the same ids every time.
"""

import re
import secrets
from collections.abc import Callable

IdSource = Callable[[], str]

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


def random_id() -> str:
    """A fresh id from the system's secure random source."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """True for 32 lower-case hex digits."""
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)


def is_name(text: str) -> bool:
    """True for a name that is safe in a log line, a header and a file name (at most 128 characters)."""
    return _NAME.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """True for what may be a host name, an IPv4 or an IPv6 address; never for a URL, a path or a port after it."""
    return _HOST.fullmatch(text) is not None
