"""Members that are known but not served: with their neutral value they are accepted, otherwise refused by name.

A member that would change the answer is never ignored in silence.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from triptych_contract.errors import BadRequest, Unsupported
from triptych_engine.server.body import Members

Neutral = Callable[[object], bool]


def _is(*values: object) -> Neutral:
    return lambda value: any(type(value) is type(neutral) and value == neutral for neutral in values)


def _is_number(neutral: float) -> Neutral:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == neutral


def _is_empty(value: object) -> bool:
    return isinstance(value, list | dict | str) and not value


def _is_text_format(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


def _never(value: object) -> bool:
    return False


NEUTRAL: Mapping[str, Neutral] = MappingProxyType(
    {
        "response_format": _is_text_format,
        "structured_outputs": _never,
        "guided_json": _never,
        "guided_regex": _never,
        "guided_choice": _never,
        "guided_grammar": _never,
        "guided_decoding_backend": _never,
        "guided_whitespace_pattern": _never,
        "structural_tag": _never,
        "tools": _is_empty,
        "functions": _is_empty,
        "tool_choice": _is("none", "auto"),
        "function_call": _is("none", "auto"),
        "logit_bias": _is_empty,
        "frequency_penalty": _is_number(0),
        "presence_penalty": _is_number(0),
        "repetition_penalty": _is_number(1),
        "length_penalty": _is_number(1),
        "use_beam_search": _is(False),
        "early_stopping": _is(False),
        "suffix": _is(""),
        "prompt_logprobs": _never,
        "prompt_embeds": _never,
        "bad_words": _is_empty,
        "allowed_token_ids": _never,
        "logits_processors": _is_empty,
        "include_stop_str_in_output": _is(False),
        "skip_special_tokens": _is(True),
        "truncate_prompt_tokens": _never,
        "return_tokens_as_token_ids": _is(False),
        "add_generation_prompt": _is(True),
        "continue_final_message": _is(False),
        "chat_template": _never,
        "documents": _is_empty,
        "mm_processor_kwargs": _is_empty,
        "modalities": _is(["text"]),
        "audio": _never,
        "prediction": _never,
        "web_search_options": _never,
        "store": _is(False),
    }
)


def refuse_unsupported(members: Members) -> None:
    """Raise `Unsupported` for the first member that would have to be acted on and cannot be."""
    for name, neutral in NEUTRAL.items():
        raw = members.raw(name)
        if raw is None:
            continue
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise BadRequest(f"{name} cannot be read.", param=name) from None
        if not neutral(value):
            raise Unsupported(f"{name} is not served by this engine; leave it out.", param=name)


def refuse_best_of(members: Members, choices: int) -> None:
    """`best_of` is served only where it asks for nothing beside the choices themselves."""
    best_of = members.take("best_of", int, "an integer")
    if best_of is None or best_of == choices:
        return
    if best_of < choices:
        raise BadRequest("best_of must not be smaller than n.", param="best_of")
    raise Unsupported("best_of greater than n is not served by this engine; leave it out.", param="best_of")
