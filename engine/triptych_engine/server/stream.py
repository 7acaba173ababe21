"""Server-sent events: one event a piece, the ledger comment as its first line, `[DONE]` at the very end."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError
from msgspec import UNSET, UnsetType

from triptych_contract.errors import TriptychError
from triptych_contract.ledger import LedgerEntry, format_entry
from triptych_engine.server.choice import Piece
from triptych_engine.server.parse import Options
from triptych_engine.server.shapes import Shape, Usage

DONE = b"data: [DONE]\n\n"
ERROR_DEADLINE_S = 1.0
STALL_S = 30.0
"""A client that takes nothing for so long is gone, whatever its connection says."""
_ENCODER = msgspec.json.Encoder()
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
    "x-should-retry": "false",
}


def event(data: Any, ledger: bytes = b"") -> bytes:
    """One whole event."""
    return b"%bdata: %b\n\n" % (ledger, _ENCODER.encode(data))


class EventStream:
    """Writes the stream of one answer. Nothing is sent before the first piece, so that errors keep their status.

    Args:
        request: The HTTP request.
        shape: Of the endpoint.
        options: For usage.
        ledger: Write ledger comments.
    """

    def __init__(self, request: web.Request, shape: Shape, options: Options, *, ledger: bool) -> None:
        self._request = request
        self._shape = shape
        self._options = options
        self._ledger = ledger
        self._response = web.StreamResponse(headers=HEADERS)
        self._opened: set[int] = set()

    @property
    def begun(self) -> bool:
        """True once the client may have seen a byte."""
        return self._response.prepared

    async def piece(self, piece: Piece, usage: Callable[[], Usage]) -> None:
        """Send one piece; `usage` is asked only where every event tells it."""
        data = b""
        if piece.choice not in self._opened:
            self._opened.add(piece.choice)
            opening = self._shape.opening(piece.choice)
            if opening is not None:
                data = event(opening, self._comment(LedgerEntry(piece.choice, piece.first_position, (), "0")))
        entry = LedgerEntry(piece.choice, piece.first_position, piece.token_ids, str(piece.cursor))
        data += event(self._shape.chunk(piece, self._usage(usage)), self._comment(entry))
        await self._write(data)

    async def finish(self, usage: Usage) -> web.StreamResponse:
        """Send the end."""
        last = event(self._shape.usage_chunk(usage)) if self._options.include_usage else b""
        await self._write(last + DONE)
        await self._response.write_eof()
        return self._response

    async def fail(self, error: TriptychError) -> web.StreamResponse:
        """Tell an error inside of a stream that has begun; a client that does not read is cut off."""
        try:
            async with asyncio.timeout(ERROR_DEADLINE_S):
                await self._write(event(error.body()) + DONE)
                await self._response.write_eof()
        except TimeoutError:
            _cut_off(self._request)
        return self._response

    def _comment(self, entry: LedgerEntry) -> bytes:
        return format_entry(entry) if self._ledger else b""

    def _usage(self, usage: Callable[[], Usage]) -> Usage | UnsetType | None:
        if self._options.continuous_usage:
            return usage()
        return None if self._options.include_usage else UNSET

    async def _write(self, data: bytes) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await write_in_time(self._request, self._response, data, STALL_S)


async def write_in_time(request: web.Request, response: web.StreamResponse, data: bytes, limit_s: float) -> None:
    """Write to a client that reads; one that takes nothing in time is cut off.

    Raises:
        ClientConnectionResetError: The client is gone, or was cut off.
    """
    try:
        async with asyncio.timeout(limit_s):
            await response.write(data)
    except TimeoutError:
        _cut_off(request)
        raise ClientConnectionResetError("the client takes nothing") from None


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
