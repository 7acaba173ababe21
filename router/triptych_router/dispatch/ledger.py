"""Pure: the journal of the tokens that a client has got, kept as the engine wrote it.

Lines are parsed only when somebody asks what was delivered; over a byte bound they are dropped and the request
counts as not resumable, while counting goes on.
"""

from typing import NamedTuple

from triptych_contract.ledger import parse_entry

MAX_BYTES = 1024 * 1024
_WORDS_BESIDE_IDS = 4
"""Spaces of `: v1 <choice> <first position> <ids …> <cursor>` that do not stand before an id."""


class Delivered(NamedTuple):
    """What one choice has delivered."""

    token_ids: tuple[int, ...]
    cursor: str


class Ledger:
    """Ledger lines of one request in the order of delivery."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._lines: list[bytes] = []
        self._size_bytes = 0
        self._max_bytes = max_bytes
        self._whole = True
        self.tokens = 0

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return self._size_bytes

    def record(self, line: bytes) -> None:
        """An event with this line was written to the client."""
        self.tokens += max(0, line.count(b" ") - _WORDS_BESIDE_IDS)
        if not self._whole:
            return
        self._size_bytes += len(line)
        self._lines.append(line)
        if self._size_bytes > self._max_bytes:
            self._whole, self._lines, self._size_bytes = False, [], 0

    def delivered(self) -> dict[int, Delivered] | None:
        """Token ids and cursor of each choice; None if lines were dropped, unsound or left a gap."""
        if not self._whole:
            return None
        choices: dict[int, Delivered] = {}
        for line in self._lines:
            entry = parse_entry(line)
            if entry is None:
                return None
            before = choices.get(entry.choice, Delivered((), ""))
            if entry.first_position != len(before.token_ids):
                return None
            choices[entry.choice] = Delivered(before.token_ids + entry.token_ids, entry.cursor)
        return choices
