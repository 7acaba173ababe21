"""Typed, size-bounded coding of messages: JSON on HTTP, MessagePack on links and between processes.

Nothing here can build an object of a type that the caller did not name.
"""

from typing import TypeVar

import msgspec

from triptych_contract.errors import BadRequest, PayloadTooLarge

T = TypeVar("T")

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Bound of a client's request body, the same at the router and at an engine that clients ask directly."""

MAX_SPLICE_BYTES = 1024 * 1024
"""Room for the one object that a hand-over leg carries beside the client's body."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Bound of one control message; a prompt of a million tokens and its embeddings pass by other ways."""


def encode_json(message: object) -> bytes:
    """The message as JSON."""
    return msgspec.json.encode(message)


def decode_json(data: bytes | bytearray | memoryview, kind: type[T], *, limit_bytes: int = MAX_MESSAGE_BYTES) -> T:
    """Read a JSON message of a known type.

    Raises:
        PayloadTooLarge: More bytes than the limit.
        BadRequest: Not JSON, or not of that type; `param` stays empty, the message says where.
    """
    _check_size(len(data), limit_bytes)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"This message cannot be read: {_short(error)}.") from None


def encode_binary(message: object) -> bytes:
    """The message as MessagePack."""
    return msgspec.msgpack.encode(message)


def decode_binary(data: bytes | bytearray | memoryview, kind: type[T], *, limit_bytes: int = MAX_MESSAGE_BYTES) -> T:
    """Read a MessagePack message of a known type; raises as `decode_json` does."""
    _check_size(len(data), limit_bytes)
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"This message cannot be read: {_short(error)}.") from None


def _check_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise PayloadTooLarge(f"A message of {size_bytes} bytes is over the limit of {limit_bytes} bytes.")


def _short(error: Exception) -> str:
    """What is wrong in a few words, with no character in them that could forge a log line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "".join(c if c.isprintable() else "?" for c in str(error)[:200]).rstrip(".")
