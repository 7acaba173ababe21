"""Pure: the bytes of a chat or completion request into typed values, every fault with the member's name.

Limits are checked here, before anything is allocated by a value. Unknown members are ignored; known ones that
are not served are refused (`unsupported`); null stands for an absent member everywhere.
"""

from typing import Any

import msgspec

from triptych_contract.errors import BadRequest, Unsupported
from triptych_contract.sampling import (
    MAX_PROMPTS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from triptych_engine.server.body import Members, read_members
from triptych_engine.server.unsupported import refuse_best_of, refuse_unsupported

MAX_TOKEN_ID = 2**31 - 1
MAX_MESSAGES = 4096
MAX_TEMPLATE_VARIABLES = 16
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
Message = dict[str, Any]
Prompt = str | tuple[int, ...]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of requests have; None where the client said nothing and a default applies.

    Attributes:
        model: Name that the client wrote.
        stream: Answer with server-sent events.
        include_usage, continuous_usage: A usage chunk at the end; usage in every chunk.
        logprobs: Alternatives beside each chosen token; None reports nothing.
        return_token_ids: Report token ids beside texts.
        cache_salt: Keeps the prefix cache of this request apart.
        kv_transfer_params, triptych: Raw JSON of the hand-over members.
        (others): As in `triptych_contract.sampling.SamplingParams`.
    """

    model: str = ""
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    return_token_ids: bool = False
    cache_salt: str = ""
    kv_transfer_params: bytes | None = None
    triptych: bytes | None = None


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    options: Options
    prompts: tuple[Prompt, ...]
    echo: bool = False
    add_special_tokens: bool = True


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`.

    Attributes:
        options: The common members.
        messages: As the client wrote them, checked in shape; `developer` has become `system`.
        template_variables: The client's `chat_template_kwargs`.
        add_special_tokens: Let the tokenizer add its own; templates write theirs themselves.
    """

    options: Options
    messages: tuple[Message, ...]
    template_variables: dict[str, str | int | float | bool | None] = {}
    add_special_tokens: bool = False


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


def parse_completion(body: bytes) -> CompletionRequest:
    """Read a completion request; raises `BadRequest` or a child of it."""
    members = Members(read_members(body))
    refuse_unsupported(members)
    echo = members.flag("echo")
    logprobs = members.integer("logprobs")
    if echo and logprobs is not None:
        raise Unsupported("echo together with logprobs is not served by this engine.", param="echo")
    options = _options(members, logprobs=logprobs)
    if options.max_tokens == 0 and not echo:
        raise BadRequest("max_tokens must be at least 1, or 0 together with echo.", param="max_tokens")
    special = members.take("add_special_tokens", bool, "true or false")
    return CompletionRequest(
        options=options, prompts=_prompts(members), echo=echo, add_special_tokens=special is not False
    )


def parse_chat(body: bytes) -> ChatRequest:
    """Read a chat request; raises `BadRequest` or a child of it."""
    members = Members(read_members(body))
    refuse_unsupported(members)
    wanted = members.flag("logprobs")
    top = members.integer("top_logprobs")
    if top is not None and not wanted:
        if top:
            raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        top = None
    options = _options(members, logprobs=(top or 0) if wanted else None)
    if options.max_tokens == 0:
        name = "max_tokens" if "max_completion_tokens" not in members else "max_completion_tokens"
        raise BadRequest(f"{name} must be at least 1.", param=name)
    return ChatRequest(
        options=options,
        messages=_messages(members),
        template_variables=_template_variables(members),
        add_special_tokens=members.flag("add_special_tokens"),
    )


def _options(members: Members, *, logprobs: int | None) -> Options:
    stream = members.flag("stream")
    stream_options = members.take("stream_options", _StreamOptions, "an object of flags")
    if stream_options is not None and not stream:
        raise BadRequest("stream_options needs stream to be true.", param="stream_options")
    choices = members.integer("n")
    choices = 1 if choices is None else choices
    refuse_best_of(members, choices)
    max_tokens, max_completion_tokens = members.integer("max_tokens"), members.integer("max_completion_tokens")
    _check_ignored(members)
    options = Options(
        model=members.text("model"),
        stream=stream,
        include_usage=bool(stream_options and stream_options.include_usage),
        continuous_usage=bool(stream_options and stream_options.continuous_usage_stats),
        n=choices,
        temperature=members.number("temperature"),
        top_p=members.number("top_p"),
        top_k=members.integer("top_k"),
        min_p=members.number("min_p"),
        seed=members.integer("seed"),
        max_tokens=max_tokens if max_completion_tokens is None else max_completion_tokens,
        min_tokens=members.integer("min_tokens") or 0,
        stop=_stop(members),
        stop_token_ids=_stop_token_ids(members),
        ignore_eos=members.flag("ignore_eos"),
        logprobs=logprobs,
        return_token_ids=members.flag("return_token_ids"),
        cache_salt=members.text("cache_salt"),
        kv_transfer_params=members.raw("kv_transfer_params"),
        triptych=members.raw("triptych"),
    )
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise BadRequest("min_tokens must not be greater than max_tokens.", param="min_tokens")
    return options


def _check_ignored(members: Members) -> None:
    """Members that change nothing here, yet must be of their type."""
    members.text("user", limit=1024)
    members.text("service_tier")
    members.take("priority", int, "an integer")
    members.take("parallel_tool_calls", bool, "true or false")


def _stop(members: Members) -> tuple[str, ...]:
    value = members.take("stop", str | list[str], "a string or a list of strings")  # type: ignore[arg-type]
    stops = (value,) if isinstance(value, str) else tuple(value or ())
    if len(stops) > MAX_STOP_STRINGS:
        raise BadRequest(f"stop takes at most {MAX_STOP_STRINGS} strings.", param="stop")
    if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise BadRequest(f"A stop string has 1 to {MAX_STOP_CHARACTERS} characters.", param="stop")
    return stops


def _stop_token_ids(members: Members) -> tuple[int, ...]:
    ids = members.take("stop_token_ids", tuple[int, ...], "a list of token ids") or ()
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise BadRequest(f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids.", param="stop_token_ids")
    if not all(0 <= token <= MAX_TOKEN_ID for token in ids):
        raise BadRequest("stop_token_ids has an id out of range.", param="stop_token_ids")
    return ids


def _prompts(members: Members) -> tuple[Prompt, ...]:
    what = "a string, a list of strings, a list of token ids, or a list of such lists"
    value = members.take("prompt", str | list[str | int | list[int]], what)  # type: ignore[arg-type]
    if value is None:
        raise BadRequest("prompt is missing.", param="prompt")
    if isinstance(value, str):
        return (value,)
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return (_token_ids(value),)
    if len(kinds) != 1:
        raise BadRequest(f"prompt must be {what}, and not empty.", param="prompt")
    if len(value) > MAX_PROMPTS:
        raise BadRequest(f"prompt takes at most {MAX_PROMPTS} prompts.", param="prompt")
    return tuple(item if isinstance(item, str) else _token_ids(item) for item in value)


def _token_ids(ids: Any) -> tuple[int, ...]:
    if ids and not (min(ids) >= 0 and max(ids) <= MAX_TOKEN_ID):
        raise BadRequest("prompt has a token id out of range.", param="prompt")
    return tuple(ids)


def _messages(members: Members) -> tuple[Message, ...]:
    messages = members.take("messages", list[Message], "a list of objects")
    if not messages:
        raise BadRequest("messages must have at least one message.", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"messages takes at most {MAX_MESSAGES} messages.", param="messages")
    return tuple(_message(message, index) for index, message in enumerate(messages))


def _message(message: Message, index: int) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise BadRequest(f"messages[{index}].role must be one of {', '.join(ROLES)}.", param="messages")
    checked = {name: value for name, value in message.items() if value is not None}
    checked["role"] = "system" if role == "developer" else role
    content = message.get("content")
    if content is None and role != "assistant":
        raise BadRequest(f"messages[{index}].content is missing.", param="messages")
    checked["content"] = _content(content, index)
    return checked


def _content(content: object, index: int) -> str | list[dict[str, Any]]:
    """A string, or parts if there is an image among them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"messages[{index}].content must be a string or a list of parts.", param="messages")
    parts = [_part(part, index) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: object, index: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(part, dict) and kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            return {"type": "image", "url": url}
    if kind in ("input_audio", "audio_url", "video_url", "file", "refusal"):
        raise Unsupported(f"messages[{index}] has a part of type {kind}, which is not served.", param="messages")
    raise BadRequest(f"messages[{index}].content has a malformed part.", param="messages")


_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template"}
)


def _template_variables(members: Members) -> dict[str, str | int | float | bool | None]:
    kind = dict[str, str | int | float | bool | None]
    values = members.take("chat_template_kwargs", kind, "an object of plain values") or {}
    if len(values) > MAX_TEMPLATE_VARIABLES or not all(name.isidentifier() for name in values):
        raise BadRequest("chat_template_kwargs takes at most 16 plain names.", param="chat_template_kwargs")
    if _RESERVED & set(values) or any(name.startswith("_") for name in values):
        raise BadRequest(
            "chat_template_kwargs names a variable that is set by the engine.", param="chat_template_kwargs"
        )
    return values
