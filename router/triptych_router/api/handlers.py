"""The routes of the HTTP server, and what holds for all of them: authentication, errors, the body's limit."""

import time

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from triptych_contract import __version__, headers
from triptych_contract.codec import MAX_BODY_BYTES
from triptych_contract.errors import (
    Internal,
    ModelNotFound,
    TriptychError,
    UpstreamFailed,
)
from triptych_contract.program.connection import greet, name_server
from triptych_contract.roles import Stage
from triptych_router.admission.keys import ApiKeys
from triptych_router.api.auth import tenant_of
from triptych_router.api.body import read_body
from triptych_router.api.completions import Completions
from triptych_router.api.errors import error_response, of_http
from triptych_router.api.parse import Kind
from triptych_router.cluster.view import base_url
from triptych_router.dispatch.attempt import payload, read_whole
from triptych_router.dispatch.retry import LegFailed
from triptych_router.dispatch.services import Services
from triptych_router.log import log_exception
from triptych_router.schedule.filters import candidates
from triptych_router.schedule.route import no_instance

"""A million tokens of text, or sixteen images of some megabytes."""
PROXY_S = 30.0
_TENANT = web.RequestKey("tenant", str)


class Front:
    """All endpoints.

    Args:
        services: Shared parts.
        completions: The two endpoints that generate.
        keys: API keys, None on loopback without any.
        model: The only model served; empty for all.
    """

    def __init__(self, services: Services, completions: Completions, *, keys: ApiKeys | None, model: str) -> None:
        self._services = services
        self._completions = completions
        self._keys = keys
        self._model = model
        self._started = int(time.time())

    def app(self) -> web.Application:
        """The application with its routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.on_response_prepare.append(name_server)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id:.+}", self._one_model)
        app.router.add_post("/tokenize", self._proxy)
        app.router.add_post("/detokenize", self._proxy)
        for path in ("/health", "/livez"):
            app.router.add_get(path, self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        return app

    def ready(self) -> bool:
        """True with a view of the whole service and a way to serve a request."""
        view = self._services.watch.view()
        return not self._services.gate.draining and view.complete and bool(candidates(view, Stage.DECODE))

    @property
    def _guard(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await self._guarded(request, handler)
            if self._services.gate.draining and not response.prepared:
                response.force_close()
            return response

        return guard

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate, and turn whatever is raised into the one error shape."""
        try:
            greet(request)
            authorization = request.headers.get("authorization", "")
            request[_TENANT] = tenant_of(request.path, authorization, keys=self._keys, token=self._services.token)
            return await handler(request)
        except TriptychError as error:
            self._services.telemetry.rejected(error.code)
            return error_response(error)
        except web.HTTPException as error:
            self._services.telemetry.rejected(f"http_{error.status}")
            return of_http(error)
        except Exception:
            log_exception("request failed")
            return error_response(Internal("The router failed; its log has the cause."))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._completions.serve(request, Kind.CHAT, request[_TENANT])

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._completions.serve(request, Kind.COMPLETION, request[_TENANT])

    async def _models(self, _: web.Request) -> web.StreamResponse:
        return _json({"object": "list", "data": [self._model_card(name) for name in self._served()]})

    async def _one_model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        if name not in self._served():
            raise ModelNotFound("This model is not served here; GET /v1/models lists those that are.", param="model")
        return _json(self._model_card(name))

    def _served(self) -> tuple[str, ...]:
        return (self._model,) if self._model else self._services.watch.view().models()

    def _model_card(self, name: str) -> dict[str, object]:
        card: dict[str, object] = {"id": name, "object": "model", "created": self._started, "owned_by": "triptych"}
        lengths = [i.state.max_context for i in self._services.watch.view().instances if i.state.model == name]
        if lengths and (shortest := min(lengths)):
            card["max_model_len"] = shortest
        return card

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        """`/tokenize` and `/detokenize` by any instance."""
        body, view = await read_body(request), self._services.watch.view()
        able = candidates(view, Stage.DECODE) or candidates(view, Stage.PREFILL) or candidates(view, Stage.ENCODE)
        if not able:
            raise no_instance(Stage.DECODE)
        instance = able[self._services.turn() % len(able)]
        sent = {"content-type": "application/json"}
        if request[_TENANT]:
            sent[headers.TENANT] = request[_TENANT]
        if self._services.token:
            sent["authorization"] = f"Bearer {self._services.token}"
        try:
            async with self._services.session.post(
                base_url(instance.record) + request.path,
                data=payload(body),
                headers=sent,
                timeout=aiohttp.ClientTimeout(total=PROXY_S),
                allow_redirects=False,
            ) as answer:
                raw = await read_whole(answer, Stage.DECODE)
                return web.Response(status=answer.status, body=raw, content_type="application/json")
        except (aiohttp.ClientError, OSError, TimeoutError, LegFailed):
            raise UpstreamFailed("The instance that was asked did not answer; try again.") from None

    async def _live(self, _: web.Request) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.StreamResponse:
        if self.ready():
            return _json({"status": "ready"})
        raise no_instance(Stage.DECODE)

    async def _version(self, _: web.Request) -> web.StreamResponse:
        return _json({"version": __version__})

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        text = self._services.telemetry.render()
        return web.Response(body=text, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
