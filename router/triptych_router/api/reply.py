"""The client's side over aiohttp: one answer or one stream, with a bound on what waits for a slow reader.

A client that takes nothing for some time loses its connection. One timer for each answer looks after that, not
one for each write: it looks how long the present write has been waiting, and comes again when that could be too
long.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from triptych_router.dispatch.reply import ClientGone

MAX_WRITE_BYTES = 192 * 1024
"""Larger writes are cut, so that with the transport's own buffer no client holds more than 256 KiB of a stream."""


class HttpReply:
    """See `triptych_router.dispatch.reply.Reply`.

    Args:
        request: The client's request.
        headers: Of every answer, such as the request's id.
        slow_client_s: How long a write may wait for the client before it counts as gone.
        closing: True if the connection is to be closed after the answer.
    """

    def __init__(
        self, request: web.Request, headers: Mapping[str, str], *, slow_client_s: float, closing: Callable[[], bool]
    ) -> None:
        self._request = request
        self._headers = headers
        self._slow_client_s = slow_client_s
        self._closing = closing
        self._stream: web.StreamResponse | None = None
        self._waits_since_s: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.response: web.StreamResponse | None = None

    @property
    def started(self) -> bool:
        """True once a byte may have left."""
        return self.response is not None

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Write the whole answer; raises `ClientGone`."""
        response = web.Response(status=status, body=body, headers={**self._headers, **headers})
        await self._begin(response)
        await self._guarded(response.write_eof())

    async def events(self, data: bytes, headers: Mapping[str, str]) -> None:
        """Write events; raises `ClientGone`."""
        stream = self._stream
        if stream is None:
            if self.response is not None:
                raise ClientGone  # amid an answer that is no stream nothing else can be said
            shown = {**self._headers, **headers, "x-should-retry": "false", "cache-control": "no-cache"}
            stream = self._stream = web.StreamResponse(headers={"content-type": "text/event-stream", **shown})
            await self._begin(stream)
        if len(data) <= MAX_WRITE_BYTES:
            await self._guarded(stream.write(data))
            return
        for first in range(0, len(data), MAX_WRITE_BYTES):
            await self._guarded(stream.write(data[first : first + MAX_WRITE_BYTES]))

    async def end(self) -> None:
        """End the stream; raises `ClientGone`."""
        if self._stream is not None:
            await self._guarded(self._stream.write_eof())

    def abort(self) -> None:
        """Drop the connection of a client that does not read."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def close(self) -> None:
        """Nothing is written any more; called once at the request's end."""
        if self._watch is not None:
            self._watch.cancel()

    async def _begin(self, response: web.StreamResponse) -> None:
        self.response = response
        if self._closing():
            response.force_close()
        self._watch = asyncio.get_running_loop().call_later(self._slow_client_s, self._look)
        await self._guarded(response.prepare(self._request))

    def _look(self) -> None:
        """Cut a client off that has held up a write for too long; the write then fails, or its handler is cancelled."""
        loop = asyncio.get_running_loop()
        since_s = loop.time() if self._waits_since_s is None else self._waits_since_s
        left_s = since_s + self._slow_client_s - loop.time()
        if left_s <= 0:
            self.abort()
            return
        self._watch = loop.call_later(left_s, self._look)

    async def _guarded(self, writing: Awaitable[object]) -> None:
        self._waits_since_s = asyncio.get_running_loop().time()
        try:
            await writing
        except (ConnectionError, RuntimeError):
            raise ClientGone from None
        finally:
            self._waits_since_s = None
