"""The client's side over aiohttp: one answer or one stream, with a bound on what waits for a slow reader."""

import asyncio
from collections.abc import Awaitable, Mapping

from aiohttp import web

from triptych_router.dispatch.reply import ClientGone

SLOW_CLIENT_S = 30.0
"""How long the transport's buffer may stay full (64 KiB and a write) before a client counts as gone."""
MAX_WRITE_BYTES = 192 * 1024
"""Larger writes are cut, so that with the transport's own buffer no client holds more than 256 KiB."""


class HttpReply:
    """See `triptych_router.dispatch.reply.Reply`.

    Args:
        request: The client's request.
        headers: Of every answer, such as the request's id.
    """

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self._headers = headers
        self._stream: web.StreamResponse | None = None
        self.response: web.StreamResponse | None = None

    @property
    def started(self) -> bool:
        """True once a byte of a stream may have left."""
        return self._stream is not None

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """The handler returns it, and aiohttp writes it."""
        self.response = web.Response(status=status, body=body, headers={**self._headers, **headers})

    async def events(self, data: bytes, headers: Mapping[str, str]) -> None:
        """Write events; raises `ClientGone`."""
        if self._stream is None:
            shown = {**self._headers, **headers, "x-should-retry": "false", "cache-control": "no-cache"}
            self._stream = self.response = web.StreamResponse(headers=shown)
            self._stream.content_type = "text/event-stream"
            await self._guarded(self._stream.prepare(self._request))
        for first in range(0, len(data), MAX_WRITE_BYTES):
            await self._guarded(self._stream.write(data[first : first + MAX_WRITE_BYTES]))

    async def end(self) -> None:
        """End the stream; raises `ClientGone`."""
        if self._stream is not None:
            await self._guarded(self._stream.write_eof())

    def abort(self) -> None:
        """Drop the connection of a client that does not read."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _guarded(self, writing: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(SLOW_CLIENT_S) as scope:
                await writing
        except TimeoutError:
            if scope.expired():
                raise ClientGone from None
            raise
        except (ConnectionError, RuntimeError):
            raise ClientGone from None
