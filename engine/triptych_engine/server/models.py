"""`/v1/models`, `/tokenize` and `/detokenize`."""

import time

from aiohttp import web

from triptych_contract.errors import BadRequest, ModelNotFound
from triptych_engine.server.body import Members, read_members
from triptych_engine.server.engine import Engine
from triptych_engine.server.incoming import read_body
from triptych_engine.server.instance import json_response
from triptych_engine.server.keys import ENGINE
from triptych_engine.server.parse import ChatRequest, parse_chat
from triptych_engine.server.prompts import chat_prompt

_STARTED = int(time.time())
MAX_IDS = 2**20


async def models(request: web.Request) -> web.StreamResponse:
    """`GET /v1/models`."""
    return json_response({"object": "list", "data": [_model(request.app[ENGINE])]})


async def model(request: web.Request) -> web.StreamResponse:
    """`GET /v1/models/{model}`; a name may hold slashes."""
    engine = request.app[ENGINE]
    if request.match_info["model"] != engine.card.name:
        raise ModelNotFound("The model is not served here; /v1/models lists what is.", param="model")
    return json_response(_model(engine))


async def tokenize(request: web.Request) -> web.StreamResponse:
    """`POST /tokenize`: token ids of `prompt`, or of `messages` through the chat template."""
    engine = request.app[ENGINE]
    body = await read_body(request)
    members = Members(read_members(body))
    if "messages" in members:
        ids = await _chat_ids(parse_chat(body), engine)
    else:
        prompt = members.take("prompt", str, "a string")
        if prompt is None:
            raise BadRequest("prompt is missing.", param="prompt")
        special = members.take("add_special_tokens", bool, "true or false") is not False
        ids = await engine.card.tokenizer.encode(prompt, add_special_tokens=special, max_tokens=engine.max_context)
    return json_response({"count": len(ids), "max_model_len": engine.max_context, "tokens": ids})


async def detokenize(request: web.Request) -> web.StreamResponse:
    """`POST /detokenize`: the text of `tokens`, special ones written out."""
    engine = request.app[ENGINE]
    members = Members(read_members(await read_body(request)))
    tokens = members.take("tokens", list[int], "a list of token ids")
    if tokens is None:
        raise BadRequest("tokens is missing.", param="tokens")
    bound = engine.ready.vocab_size if engine.ready else engine.card.tokenizer.vocab_size
    if len(tokens) > MAX_IDS or not all(0 <= token < bound for token in tokens):
        raise BadRequest("tokens is too long, or has an id that the model does not have.", param="tokens")
    return json_response({"prompt": engine.card.tokenizer.decode_all(tokens)})


async def _chat_ids(chat: ChatRequest, engine: Engine) -> list[int]:
    return (await chat_prompt(chat, engine.card, tenant="", max_context=engine.max_context)).token_ids


def _model(engine: Engine) -> dict[str, object]:
    return {
        "id": engine.card.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "triptych",
        "max_model_len": engine.max_context,
    }
