"""The HTTP application: one table of routes that says who may call each, and one place that writes errors."""

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError

from triptych_contract import headers
from triptych_contract.codec import MAX_BODY_BYTES, MAX_SPLICE_BYTES
from triptych_contract.errors import (
    BadRequest,
    ErrorBody,
    ErrorDetail,
    Internal,
    NotFound,
    PayloadTooLarge,
    TriptychError,
)
from triptych_contract.program.connection import GuardedRunner, greet, name_server
from triptych_engine.server import health, instance, models, openai
from triptych_engine.server.access import Access, Guard
from triptych_engine.server.caller import request_id_of
from triptych_engine.server.engine import Engine
from triptych_engine.server.events import EventHub
from triptych_engine.server.keys import ACCESS, ENGINE, GUARD, HUB, REQUEST_ID, TRUSTED
from triptych_engine.server.log import log, log_exception

MAX_LINE_BYTES = 8190
MAX_FIELD_BYTES = 16384
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One route and who may call it."""

    method: str
    path: str
    access: Access
    handler: Handler


ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", Access.CLIENT, openai.chat_completions),
    Route("POST", "/v1/completions", Access.CLIENT, openai.completions),
    Route("GET", "/v1/models", Access.CLIENT, models.models),
    Route("GET", "/v1/models/{model:.+}", Access.CLIENT, models.model),
    Route("POST", "/tokenize", Access.CLIENT, models.tokenize),
    Route("POST", "/detokenize", Access.CLIENT, models.detokenize),
    Route("GET", "/version", Access.CLIENT, health.version),
    Route("GET", "/metrics", Access.CLIENT, health.metrics),
    Route("GET", "/health", Access.PUBLIC, health.health),
    Route("GET", "/livez", Access.PUBLIC, health.livez),
    Route("GET", "/readyz", Access.PUBLIC, health.readyz),
    Route("GET", "/instance", Access.SERVICE, instance.state),
    Route("GET", "/instance/events", Access.SERVICE, instance.events),
    Route("GET", "/instance/audit", Access.SERVICE, instance.audit),
    Route("POST", "/instance/role", Access.SERVICE, instance.role),
    Route("POST", "/instance/drain", Access.SERVICE, instance.drain),
    Route("POST", "/instance/leases/{lease}", Access.SERVICE, instance.renew),
    Route("DELETE", "/instance/leases/{lease}", Access.SERVICE, instance.release),
)
_QUIET = ("/metrics", "/health", "/livez", "/readyz", "/instance")


def build_app(engine: Engine, hub: EventHub, guard: Guard) -> web.Application:
    """The application of one engine."""
    app = web.Application(
        client_max_size=MAX_BODY_BYTES + MAX_SPLICE_BYTES, middlewares=[_identify, _shape_errors, _authenticate]
    )
    app[ENGINE], app[HUB], app[GUARD] = engine, hub, guard
    app.on_response_prepare.append(add_request_id)
    app.on_response_prepare.append(name_server)
    access: dict[tuple[str, str], Access] = {}
    for route in ROUTES:
        added = app.router.add_route(route.method, route.path, route.handler)
        if added.resource is not None:
            access[route.method, added.resource.canonical] = route.access
        if route.method == "GET":
            app.router.add_route("HEAD", route.path, route.handler)
    app[ACCESS] = access
    return app


def build_runner(app: web.Application) -> web.AppRunner:
    """A runner that cancels the handlers of vanished clients and bounds what a client may send."""
    return GuardedRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=1.0,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_FIELD_BYTES,
    )


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, and write one line about its end."""
    request[REQUEST_ID] = request_id_of(request.headers, request.app[ENGINE].new_id)
    request[TRUSTED] = False
    began_s = time.monotonic()
    status = 499
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        if not request.path.startswith(_QUIET):
            route = request.match_info.route.resource
            log(
                20,
                "request",
                request_id=request[REQUEST_ID],
                method=request.method,
                route=route.canonical if route else "",
                status=status,
                seconds=round(time.monotonic() - began_s, 4),
            )


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Echo the request's id in every answer."""
    if REQUEST_ID in request:
        response.headers[headers.REQUEST_ID] = request[REQUEST_ID]


@web.middleware
async def _shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves in OpenAI's shape; what is no error of ours leaves as an internal one."""
    try:
        greet(request)
        return await handler(request)
    except TriptychError as error:
        return _error_response(error)
    except web.HTTPMethodNotAllowed:
        return _method_not_allowed()
    except web.HTTPRequestEntityTooLarge:
        return _error_response(PayloadTooLarge("The body is too large."))
    except web.HTTPNotFound:
        return _error_response(NotFound("There is no such path."))
    except web.HTTPException:
        return _error_response(BadRequest("The request cannot be read."))
    except ClientConnectionResetError:
        raise
    except Exception:
        log_exception("handler-failed", request_id=request[REQUEST_ID])
        return _error_response(Internal("The engine is at fault; its log has the cause."))


@web.middleware
async def _authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let the caller in by the table of routes; an unknown path tells a stranger nothing but that it needs a token."""
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    access = request.app[ACCESS].get((method, resource.canonical), Access.SERVICE) if resource else Access.CLIENT
    request[TRUSTED] = request.app[GUARD].check(access, request.headers.get("authorization"))
    return await handler(request)


def _error_response(error: TriptychError) -> web.Response:
    return web.Response(
        body=error.json(), status=error.status, headers=error.headers(), content_type="application/json"
    )


def _method_not_allowed() -> web.Response:
    detail = ErrorDetail("This path does not take this method.", "invalid_request_error", None, "method_not_allowed")
    return web.Response(body=msgspec.json.encode(ErrorBody(detail)), status=405, content_type="application/json")
