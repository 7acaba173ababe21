"""Handlers of `/v1/completions` and `/v1/chat/completions`: one straight line from bytes to bytes."""

from aiohttp import web

from triptych_engine.server.answer import serve
from triptych_engine.server.chat import ChatShape
from triptych_engine.server.completions import CompletionShape
from triptych_engine.server.incoming import read_body
from triptych_engine.server.job import admit, answer_of, caller_of, in_time, make_job
from triptych_engine.server.keys import ENGINE
from triptych_engine.server.parse import parse_chat, parse_completion
from triptych_engine.server.prompts import chat_prompt, completion_prompts


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`."""
    engine = request.app[ENGINE]
    with engine.table.counted():
        caller = caller_of(request, engine)
        parsed = parse_completion(await read_body(request))
        leg = admit(engine, caller, parsed.options)
        async with in_time(caller, engine.clock):
            prompts = await completion_prompts(parsed, engine.card, max_context=engine.max_context)
        echo = tuple(engine.card.tokenizer.decode_all(p.token_ids) for p in prompts) if parsed.echo else ()
        answer = answer_of(engine, caller, parsed.options, prompts, echo)
        job = make_job(engine, caller, leg, parsed=parsed, prompts=prompts, shape=CompletionShape(answer))
        return await serve(request, job)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`."""
    engine = request.app[ENGINE]
    with engine.table.counted():
        caller = caller_of(request, engine)
        parsed = parse_chat(await read_body(request))
        leg = admit(engine, caller, parsed.options)
        async with in_time(caller, engine.clock):
            prompt = await chat_prompt(parsed, engine.card, tenant=caller.tenant, max_context=engine.max_context)
        answer = answer_of(engine, caller, parsed.options, (prompt,), ())
        job = make_job(engine, caller, leg, parsed=parsed, prompts=(prompt,), shape=ChatShape(answer))
        return await serve(request, job)
