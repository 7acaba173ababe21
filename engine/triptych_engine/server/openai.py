"""Handlers of `/v1/completions` and `/v1/chat/completions`: one straight line from bytes to bytes."""

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError

from triptych_contract.codec import encode_json
from triptych_contract.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    ModelNotFound,
    PayloadTooLarge,
    RequestTimeout,
    TriptychError,
    UnsupportedMedia,
)
from triptych_contract.handover import DecodeLeg, EncodeLeg, Leg, LocalLeg, PrefillLeg, parse_leg
from triptych_contract.hashing import chain_root
from triptych_contract.roles import Stage
from triptych_engine.messages import Mode, Ready, Submit
from triptych_engine.server.caller import Caller, read_caller
from triptych_engine.server.chat import ChatShape
from triptych_engine.server.choice import Piece
from triptych_engine.server.completions import CompletionShape
from triptych_engine.server.engine import Engine
from triptych_engine.server.generate import Generation, merge
from triptych_engine.server.keys import ENGINE, REQUEST_ID, TRUSTED
from triptych_engine.server.legs import embedded, encode_leg, find_embeddings, prefill_leg, settle
from triptych_engine.server.log import log_exception
from triptych_engine.server.parse import ChatRequest, CompletionRequest, Options, parse_chat, parse_completion
from triptych_engine.server.prompts import Prepared, chat_prompt, completion_prompts
from triptych_engine.server.sampling import COMPLETION_TOKENS, resolve_sampling
from triptych_engine.server.shapes import Answer, Shape, usage_of
from triptych_engine.server.stream import EventStream

BODY_DEADLINE_S = 30.0
GRACE_S = 0.5
"""The core ends a request at its deadline; if it does not, the server does so a little later."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that has been read, checked and tokenised.

    Attributes:
        engine, caller, leg, options: Of the call.
        prompts: As the core takes them.
        submits: Without embeddings and leases, one for each prompt.
        shape: Of the endpoint.
        echo_only: Nothing is generated; the prompt itself is the answer.
    """

    engine: Engine
    caller: Caller
    leg: Leg
    options: Options
    prompts: tuple[Prepared, ...]
    submits: tuple[Submit, ...]
    shape: Shape
    echo_only: bool = False


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`."""
    engine = request.app[ENGINE]
    with engine.table.counted():
        caller = _caller(request, engine)
        parsed = parse_completion(await read_body(request))
        leg = _admit(engine, caller, parsed.options)
        prompts = await completion_prompts(parsed, engine.card, max_context=engine.max_context)
        echo = tuple(engine.card.tokenizer.decode_all(p.token_ids) for p in prompts) if parsed.echo else ()
        answer = _answer(engine, caller, parsed.options, prompts, echo)
        job = _job(engine, caller, leg, parsed=parsed, prompts=prompts, shape=CompletionShape(answer))
        return await _serve(request, job)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`."""
    engine = request.app[ENGINE]
    with engine.table.counted():
        caller = _caller(request, engine)
        parsed = parse_chat(await read_body(request))
        leg = _admit(engine, caller, parsed.options)
        prompts = (
            await chat_prompt(parsed, engine.card, tenant=caller.tenant, max_context=engine.max_context),
        )
        answer = _answer(engine, caller, parsed.options, prompts, ())
        return await _serve(request, _job(engine, caller, leg, parsed=parsed, prompts=prompts, shape=ChatShape(answer)))


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


def _caller(request: web.Request, engine: Engine) -> Caller:
    return read_caller(
        request.headers,
        request_id=request[REQUEST_ID],
        trusted=request[TRUSTED],
        now_s=engine.clock.now_s(),
        unix_s=time.time(),
        timeout_s=engine.settings.request_timeout_s,
        seed=secrets.randbits(63),
    )


def _admit(engine: Engine, caller: Caller, options: Options) -> Leg:
    """The leg that the call asks for, if this instance takes it now."""
    leg = parse_leg(options.kv_transfer_params, options.triptych, trusted=caller.trusted)
    stages = {EncodeLeg: Stage.ENCODE, PrefillLeg: Stage.PREFILL}
    engine.role.admit(stages.get(type(leg), Stage.DECODE), caller.epoch)
    if options.model and options.model != engine.card.name:
        raise ModelNotFound("The model is not served here; /v1/models lists what is.", param="model")
    return leg


def _answer(
    engine: Engine, caller: Caller, options: Options, prompts: tuple[Prepared, ...], echo: tuple[str, ...]
) -> Answer:
    return Answer(
        request_id=caller.request_id,
        created=caller.created,
        model=engine.card.name,
        prompt_ids=tuple(prompt.token_ids for prompt in prompts),
        choices_per_prompt=options.n,
        return_token_ids=options.return_token_ids,
        token_text=engine.card.tokenizer.token_text,
        echo=echo,
    )


def _job(
    engine: Engine,
    caller: Caller,
    leg: Leg,
    *,
    parsed: CompletionRequest | ChatRequest,
    prompts: tuple[Prepared, ...],
    shape: Shape,
) -> Job:
    """Check the client's own limits on every leg, before any work is done."""
    ready = engine.ready
    if ready is None:
        raise Internal("The engine has no model.")
    options = parsed.options
    _check_leg(leg, prompts)
    submits = tuple(
        _submit(engine, ready, caller, parsed=parsed, leg=leg, prompt=prompt, index=index)
        for index, prompt in enumerate(prompts)
    )
    echo_only = options.max_tokens == 0 and isinstance(leg, LocalLeg)
    return Job(engine, caller, leg, options, prompts, submits, shape, echo_only)


def _check_leg(leg: Leg, prompts: tuple[Prepared, ...]) -> None:
    if isinstance(leg, LocalLeg):
        return
    if len(prompts) != 1:
        raise BadRequest("A list of prompts is not handed over.", param="prompt")
    length = len(prompts[0].token_ids)
    if isinstance(leg, PrefillLeg | DecodeLeg) and length < 2:
        raise BadRequest("A prompt of one token is not handed over.", param="prompt")
    if isinstance(leg, DecodeLeg) and leg.ticket.remote_num_tokens != length:
        raise BadRequest("The ticket is of another prompt.", param="kv_transfer_params")
    if isinstance(leg, EncodeLeg) and not prompts[0].images:
        raise BadRequest("An encode leg needs an image.", param="messages")


def _submit(
    engine: Engine,
    ready: Ready,
    caller: Caller,
    *,
    parsed: CompletionRequest | ChatRequest,
    leg: Leg,
    prompt: Prepared,
    index: int,
) -> Submit:
    options, card = parsed.options, engine.card
    if any(token >= ready.vocab_size for token in prompt.token_ids):
        raise BadRequest("The prompt has a token id that the model does not have.", param="prompt")
    sampling = resolve_sampling(
        options,
        card.defaults,
        prompt_tokens=len(prompt.token_ids),
        max_context=ready.max_context,
        vocab_size=ready.vocab_size,
        default_max_tokens=COMPLETION_TOKENS if isinstance(parsed, CompletionRequest) else None,
        seed=caller.seed,
    )
    root = chain_root(
        fingerprint=ready.fingerprint, kv_dtype=ready.kv_dtype, tenant=caller.tenant, cache_salt=options.cache_salt
    )
    modes = {PrefillLeg: Mode.PREFILL, DecodeLeg: Mode.PULL}
    pulls = isinstance(leg, DecodeLeg)
    return Submit(
        id=engine.new_id(),
        token_ids=prompt.token_ids,
        sampling=sampling,
        mode=modes.get(type(leg), Mode.SERVE),
        chain_root=root,
        prompt_index=index,
        eos_token_ids=card.defaults.eos_token_ids,
        media=prompt.media,
        # While blocks are pulled only the server may end the request: it first stops writing into them.
        deadline_s=None if pulls else caller.deadline_s,
        lease=_lease(engine, leg),
        remote_num_tokens=leg.ticket.remote_num_tokens if isinstance(leg, DecodeLeg) else 0,
        prefix=caller.prefix,
    )


def _lease(engine: Engine, leg: Leg) -> str:
    """The id under which blocks are kept or pulled; of a prefill leg the caller's, or a new one."""
    if isinstance(leg, DecodeLeg):
        return leg.ticket.lease
    return leg.lease or engine.new_id() if isinstance(leg, PrefillLeg) else ""


async def _serve(request: web.Request, job: Job) -> web.StreamResponse:
    left_s = max(0.0, job.caller.deadline_s - job.engine.clock.now_s()) + GRACE_S
    stream = EventStream(request, job.shape, job.options, ledger=job.caller.ledger)
    try:
        try:
            async with asyncio.timeout(left_s):
                return await _leg(request, job, stream)
        except TimeoutError:
            raise DeadlineExceeded("The request's time is over.") from None
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
    response = web.Response(body=encode_json(body), content_type="application/json")
    try:
        await response.prepare(request)
        await response.write_eof()
    except BaseException:
        if release is not None:
            release[0].handover.release(release[1])
        raise
    return response
