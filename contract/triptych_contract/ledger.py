"""The ledger comment: the first line of an SSE event that says which tokens the event delivers.

    : v1 <choice> <first position> <ids …> <cursor>

`ids` are the token ids from the first output position on; the cursor is opaque to the router.
"""

import re
from typing import NamedTuple

PREFIX = b": v1 "
MAX_LINE_BYTES = 65536
_CURSOR = re.compile(rb"[!-~]+")
_NUMBER = re.compile(rb"[0-9]{1,18}")


class LedgerEntry(NamedTuple):
    """Tokens of one choice that one event delivers."""

    choice: int
    first_position: int
    token_ids: tuple[int, ...]
    cursor: str


def format_entry(entry: LedgerEntry) -> bytes:
    """The comment line, with its newline.

    Raises:
        ValueError: The cursor is not one word of visible ASCII; without it a token id would be read as the cursor.
    """
    cursor = entry.cursor.encode()
    if not _CURSOR.fullmatch(cursor):
        raise ValueError("a cursor is one word of visible ASCII characters")
    numbers = " ".join(map(str, (entry.choice, entry.first_position, *entry.token_ids)))
    return PREFIX + numbers.encode("ascii") + b" " + cursor + b"\n"


def parse_entry(line: bytes) -> LedgerEntry | None:
    """Read a comment line; None if it is not a sound one (the event then counts as not resumable)."""
    if not line.startswith(PREFIX) or len(line) > MAX_LINE_BYTES:
        return None
    *numbers, cursor = line[len(PREFIX) :].split() or [b""]
    if len(numbers) < 2 or not _CURSOR.fullmatch(cursor) or not all(map(_NUMBER.fullmatch, numbers)):
        return None
    choice, first, *ids = map(int, numbers)
    return LedgerEntry(choice, first, tuple(ids), cursor.decode("ascii"))


def split_event(event: bytes) -> tuple[bytes | None, bytes]:
    """Cut the ledger comment off a whole SSE event; the rest is what the client gets."""
    if not event.startswith(PREFIX):
        return None, event
    line, newline, rest = event.partition(b"\n")
    return (line, rest) if newline else (None, event)
