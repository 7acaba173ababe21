"""Pure: how many values a JSON text holds, told from its bytes before anything is built of it.

An object costs some hundred bytes of memory and three bytes of text, so a bound on bytes alone lets a body take
fifty times its size. Nearly all texts are told by counting characters; only one with very many is looked at
more closely, string by string, until it is over the bound.
"""

import re

from triptych_contract.errors import BadRequest

MAX_NODES = 1 << 17
"""Strings, lists and objects; 4096 messages of four parts each have fewer."""
MAX_ITEMS = 1 << 20
"""Commas, so also numbers: a prompt of a million token ids."""
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""The closing quote is optional, so that a text without one is passed once and not once for each quote in it."""


def check_json_bounds(data: bytes) -> None:
    """Raise `BadRequest` for a JSON text of more values than any request has; malformed ones may pass."""
    if len(data) <= MAX_NODES:  # each value has a byte at least
        return
    if data.count(b'"') // 2 + _containers(data, 0, len(data)) <= MAX_NODES and data.count(b",") <= MAX_ITEMS:
        return
    nodes = items = at = 0
    for string in _STRING.finditer(data):
        nodes += 1 + _containers(data, at, string.start())
        items += data.count(b",", at, string.start())
        at = string.end()
        _check(nodes, items)
    _check(nodes + _containers(data, at, len(data)), items + data.count(b",", at))


def _check(nodes: int, items: int) -> None:
    if nodes > MAX_NODES or items > MAX_ITEMS:
        raise BadRequest("The body cannot be read: it has too many values.")


def _containers(data: bytes, start: int, end: int) -> int:
    return data.count(b"[", start, end) + data.count(b"{", start, end)
