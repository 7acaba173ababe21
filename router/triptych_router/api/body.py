"""A client's body: JSON, not compressed, so that no small body becomes a large one, and whole within its time."""

import asyncio

from aiohttp import web

from triptych_contract.errors import RequestTimeout, UnsupportedMedia

BODY_S = 60.0
"""Time for a client to send its body."""


async def read_body(request: web.Request) -> bytes:
    """The bytes of a body.

    Raises:
        UnsupportedMedia: Another content type, where one is given, or a content encoding.
        RequestTimeout: The client does not send it in time.
        web.HTTPRequestEntityTooLarge: It is over the application's limit.
    """
    if "content-type" in request.headers and request.content_type != "application/json":
        raise UnsupportedMedia("The content type must be application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not taken.")
    if request.content.is_eof():  # all of a small body comes with its head
        return await request.read()
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise RequestTimeout("The request did not arrive in time.") from None
