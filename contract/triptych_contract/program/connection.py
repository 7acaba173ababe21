"""One client's connection: its first head has a deadline, and what cannot be read as HTTP is told in our shape.

The library waits for a head as long as the client likes, and answers what it cannot read with its own words
and with the client's.
"""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion10

from triptych_contract.errors import BadRequest, DeadlineExceeded, Internal, TriptychError

HEAD_S = 10.0
"""From a connection's begin to the end of its first request's head."""
KEEPALIVE_S = 75.0
"""From an answer to the end of the next request's head; longer than a peer of ours keeps an idle connection."""
SERVER_NAME = "triptych"


class Connection(web.RequestHandler):
    """See `aiohttp.web.RequestHandler`."""

    __slots__ = ("_cut",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come; it has so long to say what it wants."""
        super().connection_made(transport)
        self._cut = asyncio.get_running_loop().call_later(HEAD_S, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone."""
        self.head_arrived()
        super().connection_lost(exc)

    def head_arrived(self) -> None:
        """A request can be handled; from now on its own deadlines hold."""
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or to a failure outside of all handlers; the connection ends with it."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another answer has been sent")
        if status >= 500:
            self.log_exception("connection failed", exc_info=exc)
        response = web.Response(
            body=_shown(status).json(),
            status=status,
            headers={"server": SERVER_NAME},
            content_type="application/json",
        )
        response.force_close()
        return response


class GuardedRunner(web.AppRunner):
    """A runner whose clients come as `Connection`s."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **{"keepalive_timeout": KEEPALIVE_S, **made._kwargs},
        )


class _Server(web.Server):
    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)


def greet(request: web.Request) -> None:
    """Note that a head has arrived.

    Raises:
        BadRequest: It is of a version of HTTP without headers.
    """
    if isinstance(request.protocol, Connection):
        request.protocol.head_arrived()
    if request.version < HttpVersion10:
        raise BadRequest("The request cannot be read.")


async def name_server(_: web.Request, response: web.StreamResponse) -> None:
    """Name the program where the library would name itself and its version."""
    response.headers["server"] = SERVER_NAME


def _shown(status: int) -> TriptychError:
    if status < 500:
        return BadRequest("The request cannot be read.")
    return DeadlineExceeded("The request's time is over.") if status == 504 else Internal("The program is at fault.")
