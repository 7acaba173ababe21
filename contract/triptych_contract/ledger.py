"""The ledger comment: the first line of an SSE event that says which tokens the event delivers.

    : v1 <choice> <first position> <ids …> <cursor>

`ids` are the token ids from the first output position on; the cursor is opaque to the router.
"""

from typing import NamedTuple

PREFIX = b": v1 "
MAX_LINE_BYTES = 65536


class LedgerEntry(NamedTuple):
    """Tokens of one choice that one event delivers."""

    choice: int
    first_position: int
    token_ids: tuple[int, ...]
    cursor: str


def format_entry(entry: LedgerEntry) -> bytes:
    """The comment line, with its newline."""
    ids = " ".join(map(str, entry.token_ids))
    body = (
        f"{entry.choice} {entry.first_position} {ids} {entry.cursor}"
        if ids
        else (f"{entry.choice} {entry.first_position} {entry.cursor}")
    )
    return PREFIX + body.encode("ascii") + b"\n"


def parse_entry(line: bytes) -> LedgerEntry | None:
    """Read a comment line; None if it is not a sound one (the event then counts as not resumable)."""
    if not line.startswith(PREFIX) or len(line) > MAX_LINE_BYTES:
        return None
    words = line[len(PREFIX) :].split()
    if len(words) < 3:
        return None
    try:
        choice, first = int(words[0]), int(words[1])
        ids = tuple(int(word) for word in words[2:-1])
    except ValueError:
        return None
    if choice < 0 or first < 0 or any(token < 0 for token in ids):
        return None
    return LedgerEntry(choice, first, ids, words[-1].decode("ascii", "replace"))


def split_event(event: bytes) -> tuple[bytes | None, bytes]:
    """Cut the ledger comment off a whole SSE event; the rest is what the client gets."""
    if not event.startswith(PREFIX):
        return None, event
    line, newline, rest = event.partition(b"\n")
    return (line, rest) if newline else (None, event)
