"""The bodies of calls: JSON, in time, and bounded."""

import asyncio

from aiohttp import web

from triptych_contract.errors import PayloadTooLarge, RequestTimeout, UnsupportedMedia

BODY_DEADLINE_S = 30.0


async def read_body(request: web.Request) -> bytes:
    """The body of a JSON call.

    Raises:
        UnsupportedMedia: Not JSON by its content type, or compressed.
        PayloadTooLarge: Over the limit.
        RequestTimeout: The client does not send it in time.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/octet-stream"):
        raise UnsupportedMedia("The content type must be application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not taken.")
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            return await request.read()
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge("The body is too large.") from None
