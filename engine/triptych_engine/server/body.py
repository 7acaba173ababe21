"""From bytes to the top-level members of a request: raw JSON by name, nothing built that nobody asked for."""

import re
from typing import TypeVar

import msgspec

from triptych_contract.errors import BadRequest
from triptych_contract.json_bounds import check_json_bounds
from triptych_contract.sampling import check_range

T = TypeVar("T")

MAX_MEMBERS = 256
_DECODER: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY = re.compile(rb'[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
"""Possessive: nothing is remembered of the way, which for a name of some megabytes is a gigabyte."""
_AFTER = re.compile(rb"[ \t\r\n]*+([,}])")


def read_members(body: bytes) -> dict[str, bytes]:
    """The members of a JSON object; null counts as absent.

    Raises:
        BadRequest: No JSON object, one with trailing bytes, too many members or values, or a member that stands
            twice.
    """
    check_json_bounds(body)
    try:
        members = _DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest("The body must be one JSON object in UTF-8, with nothing after it.") from None
    if len(members) > MAX_MEMBERS:
        raise BadRequest(f"The body has more than {MAX_MEMBERS} members.")
    raws = {name: bytes(raw) for name, raw in members.items()}
    _check_unique(body, raws)
    return {name: raw for name, raw in raws.items() if raw != b"null"}


def _check_unique(body: bytes, raws: dict[str, bytes]) -> None:
    """Walk over the members, jumping over each value by its known length.

    The decoder keeps the last of equal names, so an earlier one either has another value, which the walk
    does not find in its place, or its name comes by twice.
    """
    seen: set[str] = set()
    at = body.index(b"{") + 1
    while len(seen) < len(raws):
        key = _KEY.match(body, at)
        name = msgspec.json.decode(key[1], type=str) if key else ""
        raw = raws.get(name, b"")
        if key is None or name in seen or not body.startswith(raw, key.end()):
            raise BadRequest(f"The member {name[:64]!r} stands twice.", param=name[:64])
        seen.add(name)
        after = _AFTER.match(body, key.end() + len(raw))
        if after is None or (len(seen) == len(raws)) != (after[1] == b"}"):
            raise BadRequest("A member of the body stands twice.", param=name[:64])
        at = after.end()


class Members:
    """Typed access to members; every fault names the member.

    Args:
        raws: Raw JSON by name, without nulls.
    """

    def __init__(self, raws: dict[str, bytes]) -> None:
        self._raws = raws

    def __contains__(self, name: str) -> bool:
        return name in self._raws

    def raw(self, name: str) -> bytes | None:
        """The JSON of a member, None if it is absent or null."""
        return self._raws.get(name)

    def take(self, name: str, kind: type[T], what: str) -> T | None:
        """A member of a known type, None if it is absent or null.

        Args:
            name: Of the member.
            kind: A type that msgspec can decode.
            what: For the message: what the member must be.
        """
        raw = self._raws.get(name)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise BadRequest(f"{name} must be {what}.", param=name) from None

    def number(self, name: str) -> float | None:
        """A number within its limits."""
        value = self.take(name, float, "a number")
        if value is not None:
            check_range(name, value)
        return value

    def integer(self, name: str) -> int | None:
        """An integer within its limits."""
        value = self.take(name, int, "an integer")
        if value is not None:
            check_range(name, value)
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if absent."""
        return bool(self.take(name, bool, "true or false"))

    def text(self, name: str, *, limit: int = 256) -> str:
        """A string of bounded length; empty if absent."""
        value = self.take(name, str, "a string") or ""
        if len(value) > limit:
            raise BadRequest(f"{name} must be at most {limit} characters.", param=name)
        return value
