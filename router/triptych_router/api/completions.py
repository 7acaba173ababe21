"""`POST /v1/chat/completions` and `/v1/completions`: from the client's bytes to its one end."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from triptych_contract import headers as names
from triptych_contract.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    TriptychError,
)
from triptych_contract.ids import is_name
from triptych_router.api import sse
from triptych_router.api.body import read_body
from triptych_router.api.errors import error_response
from triptych_router.api.parse import Kind, Parsed, parse
from triptych_router.api.reply import HttpReply
from triptych_router.dispatch.context import Context
from triptych_router.dispatch.flow import Flow
from triptych_router.dispatch.outcome import Journey, Outcome
from triptych_router.dispatch.reply import ClientGone
from triptych_router.dispatch.retry import LegFailed, shown
from triptych_router.dispatch.services import Services


class Completions:
    """Both endpoints.

    Args:
        services: Shared parts.
        model: The only model served; empty for all.
        request_timeout_s: Longest time of one request.
        slow_client_s: Longest time that a client may take nothing of its answer.
        new_seed: Mints seeds.
    """

    def __init__(
        self,
        services: Services,
        *,
        model: str,
        request_timeout_s: float,
        slow_client_s: float,
        new_seed: Callable[[], int],
    ) -> None:
        self._services = services
        self._model = model
        self._request_timeout_s = request_timeout_s
        self._slow_client_s = slow_client_s
        self._new_seed = new_seed

    async def serve(self, request: web.Request, kind: Kind, tenant: str) -> web.StreamResponse:
        """Serve one request; it is counted and logged once, however it ends."""
        services = self._services
        journey = Journey(started_s=services.clock.now_s())
        request_id = self._request_id(request)
        reply = HttpReply(
            request,
            {names.REQUEST_ID: request_id},
            slow_client_s=self._slow_client_s,
            closing=lambda: services.gate.draining,
        )
        prompt_tokens = 0
        try:
            parsed = self._parse(kind, await read_body(request))
            prompt_tokens = parsed.prompt_tokens
            journey.model = self._known(parsed.model)
            with services.gate.admitted(tenant):
                context = self._context(request_id, tenant, parsed, journey.started_s)
                return await self._run(context, journey, reply)
        except TriptychError as error:
            services.telemetry.rejected(error.code)
            journey.outcome, journey.code = Outcome.REFUSED, error.code
            return error_response(error, {names.REQUEST_ID: request_id})
        except asyncio.CancelledError:
            journey.outcome = Outcome.CANCELLED
            raise
        finally:
            reply.close()
            services.telemetry.ended(
                journey,
                now_s=services.clock.now_s(),
                request_id=request_id,
                tenant=tenant,
                prompt_tokens=prompt_tokens,
            )

    async def _run(self, context: Context, journey: Journey, reply: HttpReply) -> web.StreamResponse:
        """Run the flow and give the client its end."""
        try:
            ended = await self._flow(context, journey, reply)
            journey.outcome = Outcome.OK if ended is None else Outcome.FAILED
            journey.code = "" if ended is None else ended.code
            return reply.response or _empty()
        except ClientGone:
            return _left(journey, reply)
        except TimeoutError:
            error: TriptychError = DeadlineExceeded("The request's time is over.")
            journey.outcome = Outcome.DEADLINE
        except LegFailed as failure:
            if failure.raw and not failure.error.elsewhere and failure.status < 500 and not reply.started:
                journey.outcome, journey.code = Outcome.REFUSED, failure.error.code
                return await _refuse(failure, journey, reply)
            error, journey.outcome = shown(failure.error), Outcome.FAILED
        except TriptychError as refusal:
            error, journey.outcome = shown(refusal), Outcome.FAILED
        journey.code = error.code
        return await _fail(error, journey, reply, {names.REQUEST_ID: context.request_id})

    async def _flow(self, context: Context, journey: Journey, reply: HttpReply) -> TriptychError | None:
        left_s = context.deadline_s - self._services.clock.now_s()
        async with asyncio.timeout(max(0.001, left_s)):
            return await Flow(self._services, context, journey, reply).run()

    def _parse(self, kind: Kind, body: bytes) -> Parsed:
        parsed = parse(kind, body)
        self._services.budget = self._services.budget.request()
        return parsed

    def _known(self, model: str) -> str:
        """The served name.

        Raises:
            ModelNotFound: Nobody serves it.
            BadRequest: None is named, and there are several.
        """
        served = (self._model,) if self._model else self._services.watch.view().models()
        if model and served and model not in served:
            raise ModelNotFound("This model is not served here; GET /v1/models lists those that are.", param="model")
        if model:
            return model if model in served else ""
        if len(served) > 1:
            raise BadRequest("Several models are served here; name one of GET /v1/models.", param="model")
        return served[0] if served else ""

    def _context(self, request_id: str, tenant: str, parsed: Parsed, started_s: float) -> Context:
        return Context(
            request_id=request_id,
            tenant=tenant,
            created=int(time.time()),
            seed=None if parsed.seeded else self._new_seed(),
            deadline_s=started_s + self._request_timeout_s,
            parsed=parsed,
        )

    def _request_id(self, request: web.Request) -> str:
        """The client's own where it is safe in headers and logs, else a fresh one."""
        given = request.headers.get(names.REQUEST_ID, "")
        return given if is_name(given) else self._services.new_id()


async def _refuse(failure: LegFailed, journey: Journey, reply: HttpReply) -> web.StreamResponse:
    """An instance's refusal of the request itself, untouched."""
    try:
        await reply.whole(failure.status, failure.raw, {"content-type": "application/json"})
    except ClientGone:
        return _left(journey, reply)
    return reply.response or _empty()


async def _fail(
    error: TriptychError, journey: Journey, reply: HttpReply, headers: dict[str, str]
) -> web.StreamResponse:
    """One clean error: a body before the first byte, else one event and the end of the stream."""
    if not reply.started:
        return error_response(error, headers)
    try:
        await reply.events(sse.error_events(error), {})
        await reply.end()
    except ClientGone:
        return _left(journey, reply)
    return reply.response or _empty()


def _left(journey: Journey, reply: HttpReply) -> web.StreamResponse:
    journey.outcome = Outcome.CANCELLED
    reply.abort()
    return reply.response or _empty()


def _empty() -> web.Response:
    return web.Response(status=499)
