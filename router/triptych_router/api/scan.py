"""Pure: find the members of a JSON object in its bytes without building it, and splice one in.

The scan knows strings, escapes and brackets at the top level and skips values; whether a skipped value is sound
JSON inside is the engine's to say, which refuses the whole body if it is not. So the two readers can differ
only about bodies that are refused anyway.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from triptych_contract.errors import BadRequest

MAX_DEPTH = 256
"""Nesting of one value; deeper ones are refused before the engine sees them."""
MAX_MEMBERS = 4096
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"', re.DOTALL)
"""Possessive: nothing is remembered of the way, which for a text of a million escapes is a gigabyte."""
_SCALAR = re.compile(rb'[^\s,\]}{["]+')
_TO_BRACKET = re.compile(rb'[^"\[\]{}]*')
_PLAIN = re.compile(rb'"([!#-\[\]-~ ]*+)"[ \t\r\n]*+:[ \t\r\n]*+("[^"\\\x00-\x1f]{0,64}+"|[-+.\w]++)[ \t\r\n]*+([,}])')
"""A member as most are: plain name, short plain string or scalar, and the mark after it, in one look."""
_OPENING, _CLOSING = b"[{", b"]}"


class Member(NamedTuple):
    """A member's name and where its value stands in the body."""

    name: str
    start: int
    end: int


def members(body: bytes) -> Iterator[Member]:
    """The members of the object that `body` is, in order, duplicates included.

    Raises:
        BadRequest: No JSON object, nested too deeply, or with too many members.
    """
    at = _past_space(body, 0)
    if body[at : at + 1] != b"{":
        raise _malformed("it must be a JSON object")
    at = _past_space(body, at + 1)
    if body[at : at + 1] == b"}":
        _check_end(body, at + 1)
        return
    for _ in range(MAX_MEMBERS):
        plain = _PLAIN.match(body, at)
        if plain is not None:
            yield Member(plain[1].decode("ascii"), plain.start(2), plain.end(2))
            mark, at = plain[3], plain.end()
        else:
            member = _member(body, at)
            yield member
            at = _past_space(body, member.end)
            mark, at = body[at : at + 1], at + 1
        if mark == b"}":
            _check_end(body, at)
            return
        if mark != b",":
            raise _malformed("a comma or the closing brace is missing")
        at = _past_space(body, at)
    raise _malformed(f"it has more than {MAX_MEMBERS} members")


def _member(body: bytes, at: int) -> Member:
    """The member that begins here, whatever it looks like."""
    name, at = _name(body, at)
    at = _past_space(body, at)
    if body[at : at + 1] != b":":
        raise _malformed("a member has no value")
    start = _past_space(body, at + 1)
    return Member(name, start, _skip_value(body, start))


def splice(body: bytes, name: str, raw_json: bytes) -> bytes:
    """The body with one more member before its last `}`; every other byte stays.

    The body must be an object that `members` has read.
    """
    end = body.rindex(b"}")
    empty = body[:end].rstrip(b" \t\r\n").endswith(b"{")
    comma = b"" if empty else b","
    return b"".join((body[:end], comma, msgspec.json.encode(name), b":", raw_json, body[end:]))


def _name(body: bytes, at: int) -> tuple[str, int]:
    found = _STRING.match(body, at)
    if found is None:
        raise _malformed("a member's name must be a string")
    raw = found[0]
    if b"\\" not in raw and raw.isascii():
        return raw[1:-1].decode("ascii"), found.end()
    try:
        return msgspec.json.decode(raw, type=str), found.end()
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _malformed("a member's name is no sound string") from None


def _skip_value(body: bytes, at: int) -> int:
    mark = body[at : at + 1]
    if mark == b'"':
        return _skip_string(body, at)
    if mark and mark in _OPENING:
        return _skip_container(body, at)
    found = _SCALAR.match(body, at)
    if found is None:
        raise _malformed("a member has no value")
    return found.end()


def _skip_string(body: bytes, at: int) -> int:
    """Past a string; one without an escape, however long, is passed by two searches."""
    end = body.find(b'"', at + 1)
    if end > 0 and body.find(b"\\", at + 1, end) < 0:
        return end + 1
    found = _STRING.match(body, at)
    if found is None:
        raise _malformed("a string does not end")
    return found.end()


def _skip_container(body: bytes, at: int) -> int:
    depth = 0
    while True:
        mark = body[at : at + 1]
        if mark == b'"':
            at = _skip_string(body, at)
        elif not mark:
            raise _malformed("a bracket is not closed")
        else:
            depth += 1 if mark in _OPENING else -1
            at += 1
            if depth == 0:
                return at
            if depth > MAX_DEPTH:
                raise _malformed("it is nested too deeply")
        at = _end(_TO_BRACKET, body, at)


def _past_space(body: bytes, at: int) -> int:
    return _end(_SPACE, body, at)


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    """Where a pattern that may match nothing ends."""
    found = pattern.match(body, at)
    return found.end() if found else at


def _check_end(body: bytes, at: int) -> None:
    if _past_space(body, at) != len(body):
        raise _malformed("there is something after the object")


def _malformed(why: str) -> BadRequest:
    return BadRequest(f"The body cannot be read: {why}.")
