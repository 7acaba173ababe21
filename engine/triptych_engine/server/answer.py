"""The work of a job, leg by leg, and its answer: whole, as a stream, or as one error."""

import asyncio
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError

from triptych_contract.codec import encode_json
from triptych_contract.errors import Internal, TriptychError
from triptych_contract.handover import DecodeLeg, EncodeLeg, LocalLeg, PrefillLeg
from triptych_engine.messages import Submit
from triptych_engine.server.choice import Piece
from triptych_engine.server.engine import Engine
from triptych_engine.server.generate import Generation, merge
from triptych_engine.server.job import Job, in_time
from triptych_engine.server.legs import embedded, encode_leg, find_embeddings, prefill_leg, settle
from triptych_engine.server.log import log_exception
from triptych_engine.server.shapes import usage_of
from triptych_engine.server.stream import EventStream

GRACE_S = 0.5
"""The core ends a request at its deadline; if it does not, the server does so a little later."""


async def serve(request: web.Request, job: Job) -> web.StreamResponse:
    """Do the work of a job and answer it, within its deadline; after the first byte an error is told in the stream."""
    stream = EventStream(request, job.shape, job.options, ledger=job.caller.ledger)
    try:
        try:
            # While blocks are pulled the core does not know the deadline, so there is nothing to wait for.
            grace_s = 0.0 if isinstance(job.leg, DecodeLeg) else GRACE_S
            async with in_time(job.caller, job.engine.clock, grace_s=grace_s):
                return await _leg(request, job, stream)
        except (ClientConnectionResetError, asyncio.CancelledError, TriptychError):
            raise
        except Exception:
            log_exception("request-failed", request_id=job.caller.request_id)
            raise Internal("The engine is at fault; its log has the cause.") from None
    except TriptychError as error:
        job.engine.metrics.finish("error")
        if not stream.begun:
            raise
        return await stream.fail(error)
    except (ClientConnectionResetError, asyncio.CancelledError):
        job.engine.metrics.finish("abort")
        raise


async def _leg(request: web.Request, job: Job, stream: EventStream) -> web.StreamResponse:
    engine, leg = job.engine, job.leg
    if isinstance(leg, EncodeLeg):
        embeddings = await encode_leg(engine, job.prompts[0], leg.lease or engine.new_id())
        extra = {"triptych": {"embeddings": msgspec.to_builtins(embeddings)}}
        return await _send(request, _empty(job, 0, extra), release=(engine, embeddings.lease))
    if job.echo_only:
        return await _echo(request, job, stream)
    ticket = leg.ticket if isinstance(leg, DecodeLeg) else None
    if ticket is not None:
        await engine.handover.check(ticket)
    generation: Generation | None = None
    try:
        submits = await _with_embeddings(job)
        if isinstance(leg, PrefillLeg):
            granted, cached = await prefill_leg(engine, submits[0], job.caller)
            extra = {"kv_transfer_params": msgspec.to_builtins(granted)}
            return await _send(request, _empty(job, cached, extra), release=(engine, granted.lease))
        generation = Generation(engine, submits, ticket, arrived_s=job.caller.arrived_s)
        return await (_stream if job.options.stream else _whole)(request, job, generation, stream)
    except BaseException as error:
        unsettled = ticket if generation is None else generation.unsettled
        if unsettled is not None:
            await settle(engine, unsettled, error)
        raise


async def _with_embeddings(job: Job) -> tuple[Submit, ...]:
    if not any(prompt.images for prompt in job.prompts):
        return job.submits
    remote = job.leg.embeddings if isinstance(job.leg, LocalLeg | PrefillLeg) else None
    rows = await find_embeddings(job.engine, job.prompts, remote)
    return tuple(
        msgspec.structs.replace(submit, embeddings=embedded(prompt, rows))
        for submit, prompt in zip(job.submits, job.prompts, strict=True)
    )


async def _whole(request: web.Request, job: Job, generation: Generation, _stream: EventStream) -> web.StreamResponse:
    pieces = [piece async for piece in generation.pieces()]
    return await _send(request, job.shape.whole(merge(pieces), generation.usage, {}))


async def _stream(request: web.Request, job: Job, generation: Generation, stream: EventStream) -> web.StreamResponse:
    pieces = generation.pieces()
    try:
        async for piece in pieces:
            await stream.piece(piece, lambda: generation.usage)
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
    return await stream.finish(generation.usage)


async def _echo(request: web.Request, job: Job, stream: EventStream) -> web.StreamResponse:
    usage = usage_of(sum(len(prompt.token_ids) for prompt in job.prompts), 0, 0)
    pieces = [_blank(choice) for choice in range(len(job.prompts) * job.options.n)]
    if not job.options.stream:
        return await _send(request, job.shape.whole(pieces, usage, {}))
    for piece in pieces:
        await stream.piece(piece, lambda: usage)
    return await stream.finish(usage)


def _empty(job: Job, cached_tokens: int, extra: dict[str, Any]) -> Any:
    """The answer of a leg that says nothing itself."""
    return job.shape.whole([_blank(0)], usage_of(len(job.prompts[0].token_ids), 0, cached_tokens), extra)


def _blank(choice: int) -> Piece:
    return Piece(choice, "", 0, (), (), "length", 0)


async def _send(request: web.Request, body: Any, release: tuple[Engine, str] | None = None) -> web.StreamResponse:
    """Write an answer to its last byte here, so that a client that vanished meanwhile is noticed.

    Args:
        request: The HTTP request.
        body: Of the answer.
        release: A lease that nobody will ask for if the answer does not get through.
    """
    try:
        response = web.Response(body=encode_json(body), content_type="application/json")
        await response.prepare(request)
        await response.write_eof()
    except BaseException:
        if release is not None:
            release[0].handover.release(release[1])
        raise
    return response
