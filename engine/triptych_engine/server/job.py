"""From a parsed call to the work that it asks for: its leg, what the core is sent, and the shape of the answer.

Everything is checked here, on every leg against the client's own limits, before any work is done.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from triptych_contract.clock import Clock
from triptych_contract.errors import BadRequest, DeadlineExceeded, Internal, ModelNotFound
from triptych_contract.handover import DecodeLeg, EncodeLeg, Leg, LocalLeg, PrefillLeg, parse_leg
from triptych_contract.hashing import chain_root
from triptych_contract.roles import Stage
from triptych_engine.messages import Mode, Ready, Submit
from triptych_engine.server.caller import Caller, read_caller
from triptych_engine.server.engine import Engine
from triptych_engine.server.keys import REQUEST_ID, TRUSTED
from triptych_engine.server.parse import ChatRequest, CompletionRequest, Options
from triptych_engine.server.prompts import Prepared
from triptych_engine.server.sampling import COMPLETION_TOKENS, resolve_sampling
from triptych_engine.server.shapes import Answer, Shape


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


def caller_of(request: web.Request, engine: Engine) -> Caller:
    """The caller, as its headers tell."""
    return read_caller(
        request.headers,
        request_id=request[REQUEST_ID],
        trusted=request[TRUSTED],
        now_s=engine.clock.now_s(),
        unix_s=time.time(),
        timeout_s=engine.settings.request_timeout_s,
        seed=secrets.randbits(63),
    )


@asynccontextmanager
async def in_time(caller: Caller, clock: Clock, *, grace_s: float = 0.0) -> AsyncIterator[None]:
    """Work that ends with the call's deadline, or a little later; raises `DeadlineExceeded` then."""
    try:
        async with asyncio.timeout(max(0.0, caller.deadline_s - clock.now_s()) + grace_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded("The request's time is over.") from None


def admit(engine: Engine, caller: Caller, options: Options) -> Leg:
    """The leg that the call asks for, if this instance takes it now."""
    leg = parse_leg(options.kv_transfer_params, options.triptych, trusted=caller.trusted)
    stages = {EncodeLeg: Stage.ENCODE, PrefillLeg: Stage.PREFILL}
    engine.role.admit(stages.get(type(leg), Stage.DECODE), caller.epoch)
    if options.model and options.model != engine.card.name:
        raise ModelNotFound("The model is not served here; /v1/models lists what is.", param="model")
    return leg


def answer_of(
    engine: Engine, caller: Caller, options: Options, prompts: tuple[Prepared, ...], echo: tuple[str, ...]
) -> Answer:
    """What every event and answer of the call says alike."""
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


def make_job(
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
