"""Every error that leaves the router: one shape, on every path and status."""

import msgspec
from aiohttp import web

from triptych_contract.errors import (
    BadRequest,
    ErrorBody,
    ErrorDetail,
    Forbidden,
    Internal,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    TriptychError,
    UnsupportedMedia,
)

_BY_STATUS: dict[int, TriptychError] = {
    400: BadRequest("The request cannot be read."),
    403: Forbidden("This is not allowed."),
    404: NotFound("There is nothing at this path."),
    408: RequestTimeout("The request did not arrive in time."),
    413: PayloadTooLarge("The body is larger than this router takes."),
    415: UnsupportedMedia("The content type must be application/json."),
}


def error_response(error: TriptychError, headers: dict[str, str] | None = None) -> web.Response:
    """An error as a response."""
    return web.Response(
        status=error.status,
        body=error.json(),
        headers={**(headers or {}), **error.headers()},
        content_type="application/json",
    )


def of_http(error: web.HTTPException, headers: dict[str, str] | None = None) -> web.Response:
    """The library's own refusals in the shape of all others."""
    if error.status == 405:
        detail = ErrorDetail(
            "This path does not take this method.", "invalid_request_error", None, "method_not_allowed"
        )
        allowed = {"allow": error.headers["allow"]} if "allow" in error.headers else {}
        body = msgspec.json.encode(ErrorBody(detail))
        return web.Response(
            status=405, body=body, headers={**(headers or {}), **allowed}, content_type="application/json"
        )
    return error_response(_BY_STATUS.get(error.status, Internal("The router failed.")), headers)
