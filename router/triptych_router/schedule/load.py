"""The router's own account of what it has in flight, in integers, so that it returns to exactly zero.

A charge remembers what it added; it is taken back once, at the first token, at the end, or on a failure,
whichever comes first. The sums are kept for each life of an instance and vanish with the last charge.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class InFlight(NamedTuple):
    """What the router has sent to one life of an instance and not got back.

    Attributes:
        prefill_tokens: Prompt tokens whose first token or ticket is not out yet.
        requests: Legs that are not over.
        output_tokens: Tokens that those legs are expected to generate.
    """

    prefill_tokens: int = 0
    requests: int = 0
    output_tokens: int = 0


NOTHING = InFlight()
LifeKey = tuple[str, str]
"""Instance id and incarnation."""


class Charge:
    """One leg's share; `prefilled` and `close` each take back once what they stand for."""

    def __init__(self, book: "LoadBook", key: LifeKey, amount: InFlight) -> None:
        self._book = book
        self._key = key
        self._left = amount

    def prefilled(self) -> None:
        """The prompt is computed: the first token or the ticket is out."""
        if self._left.prefill_tokens:
            self._take(InFlight(prefill_tokens=self._left.prefill_tokens))

    def close(self) -> None:
        """The leg is over, however it ended."""
        self._take(self._left)

    def _take(self, amount: InFlight) -> None:
        if amount == NOTHING:
            return
        self._left = _minus(self._left, amount)
        self._book.take(self._key, amount)


class LoadBook:
    """All charges by instance."""

    def __init__(self) -> None:
        self._sums: dict[LifeKey, InFlight] = {}
        self._view = MappingProxyType(self._sums)

    def charge(self, key: LifeKey, *, prefill_tokens: int, output_tokens: int) -> Charge:
        """Add a leg."""
        amount = InFlight(prefill_tokens, 1, output_tokens)
        had = self._sums.get(key, NOTHING)
        self._sums[key] = InFlight(
            had.prefill_tokens + prefill_tokens, had.requests + 1, had.output_tokens + output_tokens
        )
        return Charge(self, key, amount)

    def take(self, key: LifeKey, amount: InFlight) -> None:
        """Take back a part of what a charge added; `Charge` calls this."""
        left = _minus(self._sums.get(key, NOTHING), amount)
        if left == NOTHING:
            self._sums.pop(key, None)
        else:
            self._sums[key] = left

    def view(self) -> Mapping[LifeKey, InFlight]:
        """The present sums, read-only; it shows later changes too."""
        return self._view


def _minus(amount: InFlight, part: InFlight) -> InFlight:
    return InFlight(
        amount.prefill_tokens - part.prefill_tokens,
        amount.requests - part.requests,
        amount.output_tokens - part.output_tokens,
    )
