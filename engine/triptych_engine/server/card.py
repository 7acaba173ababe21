"""What the server knows of its model: tokenizer, chat template, defaults. Read from files, no model code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from triptych_engine.server.builtin import (
    CHAT_TEMPLATE,
    EOS_TOKEN_IDS,
    IMAGE,
    IMAGE_TOKENS,
    MESSAGE_END,
    VOCAB_SIZE,
    tokenizer_definition,
)
from triptych_engine.server.sampling import Defaults
from triptych_engine.server.template import ChatTemplate
from triptych_engine.server.tokenize import TextTokenizer

MAX_FILE_BYTES = 256 * 1024 * 1024
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ModelFilesError(ValueError):
    """The model's folder cannot be served; the sentence is for its owner."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as the API shows it.

    Attributes:
        name: Served name.
        tokenizer: Its tokenizer.
        template: Its chat template; None = only completions.
        defaults: Sampling where the client says nothing, and end-of-sequence tokens.
        image_token: Placeholder that the template writes for an image; None = no images.
        image_tokens: Tokens that an image takes.
    """

    name: str
    tokenizer: TextTokenizer
    template: ChatTemplate | None
    defaults: Defaults
    image_token: int | None = None
    image_tokens: int = 0


def simulated_card(name: str) -> ModelCard:
    """The built-in model of the simulated engine."""
    tokenizer = TextTokenizer(tokenizer_definition())
    if tokenizer.vocab_size != VOCAB_SIZE:
        raise ModelFilesError("the built-in tokenizer is at fault")
    return ModelCard(
        name=name,
        tokenizer=tokenizer,
        template=ChatTemplate(CHAT_TEMPLATE, special_tokens={"eos_token": MESSAGE_END}),
        defaults=Defaults(eos_token_ids=EOS_TOKEN_IDS),
        image_token=tokenizer.special[IMAGE],
        image_tokens=IMAGE_TOKENS,
    )


def load_card(name: str, folder: Path) -> ModelCard:
    """Read a Hugging Face folder.

    Raises:
        ModelFilesError: A file is missing or broken, or asks for code of its own.
    """
    config = _json(folder / "config.json")
    tokenizer_config = _json(folder / "tokenizer_config.json", optional=True)
    if "auto_map" in config or "auto_map" in tokenizer_config:
        raise ModelFilesError("the model's files name code of their own (auto_map), which is never run")
    try:
        tokenizer = TextTokenizer(_text(folder / "tokenizer.json") or "")
    except Exception:
        # The library raises plain `Exception` for a file that it cannot read.
        raise ModelFilesError("tokenizer.json is missing or cannot be read") from None
    return ModelCard(
        name=name,
        tokenizer=tokenizer,
        template=_template(folder, tokenizer_config),
        defaults=read_defaults(config, _json(folder / "generation_config.json", optional=True)),
    )


def read_defaults(config: dict[str, Any], generation: dict[str, Any]) -> Defaults:
    """Sampling defaults of the model; without `do_sample` its own temperature is meant for nobody."""
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    sampled = bool(generation.get("do_sample", True))

    def number(name: str, neutral: float) -> float:
        value = generation.get(name)
        if not sampled or isinstance(value, bool) or not isinstance(value, int | float):
            return neutral
        return float(value)

    return Defaults(
        temperature=min(2.0, max(0.0, number("temperature", 1.0))),
        top_p=min(1.0, max(0.0, number("top_p", 1.0))),
        top_k=max(0, int(number("top_k", 0))),
        min_p=min(1.0, max(0.0, number("min_p", 0.0))),
        eos_token_ids=tuple(token for token in ids if isinstance(token, int) and token >= 0),
    )


def _template(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplate | None:
    source = _text(folder / "chat_template.jinja") or tokenizer_config.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    try:
        return ChatTemplate(source, special_tokens=_special_tokens(tokenizer_config))
    except jinja2.TemplateError:
        raise ModelFilesError("the chat template is no Jinja template") from None


def _special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in _SPECIAL_NAMES:
        token = tokenizer_config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def _text(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelFilesError(f"{path.name} is too large")
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        raise ModelFilesError(f"{path.name} cannot be read") from None


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    text = _text(path)
    if text is None and optional:
        return {}
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        raise ModelFilesError(f"{path.name} is missing or is no JSON") from None
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path.name} is no JSON object")
    return value
