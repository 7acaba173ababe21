"""Pure: what the router needs to know of a request, read off the client's bytes without building them.

Only members that the router acts on are decoded; all others pass untouched and are the engine's to judge.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from triptych_contract.errors import BadRequest
from triptych_contract.handover import MEMBERS
from triptych_contract.json_bounds import check_json_bounds
from triptych_router.api import scan

T = TypeVar("T")

BYTES_A_TOKEN = 4
"""Bytes of prompt that make a token on average in English with current vocabularies; a hint, not a count."""
DEFAULT_OUTPUT_TOKENS = 128
"""Expected output where the client sets no limit, for the load estimate only."""
MAX_EXPECTED_OUTPUT_TOKENS = 512
_READ = frozenset(
    "model stream max_tokens max_completion_tokens n prompt messages echo logprobs seed".split()  # noqa: SIM905
)


class Kind(StrEnum):
    """Which of the two endpoints was asked."""

    CHAT = "chat"
    COMPLETION = "completion"


PATHS = {Kind.CHAT: "/v1/chat/completions", Kind.COMPLETION: "/v1/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A request as the router sees it.

    Attributes:
        kind: The endpoint.
        body: The client's bytes, never changed.
        model: As the client wrote it; empty if it did not.
        stream: The answer is a stream of events.
        choices: `n`, at least 1.
        prompts: Number of prompts; more than one for a list of them.
        prompt_tokens: Estimated from bytes, exact for token ids.
        output_tokens: Expected for the load estimate.
        media: Some message has an image part.
        echo_logprobs: The prompt's log probabilities are wanted, which a hand-over cannot give.
        seeded: The client gave a seed.
    """

    kind: Kind
    body: bytes
    model: str = ""
    stream: bool = False
    choices: int = 1
    prompts: int = 1
    prompt_tokens: int = 1
    output_tokens: int = DEFAULT_OUTPUT_TOKENS
    media: bool = False
    echo_logprobs: bool = False
    seeded: bool = False


def parse(kind: Kind, body: bytes) -> Parsed:
    """Read a request.

    Raises:
        BadRequest: No object; a member of the hand-over; a duplicate or a wrong type of a member that counts here;
            more values than any request has.
    """
    check_json_bounds(body)
    raw = _raw_members(body)
    prompts, prompt_tokens = _prompt(raw, kind)
    limit = _integer(raw, "max_completion_tokens") or _integer(raw, "max_tokens") or DEFAULT_OUTPUT_TOKENS
    echo = _take(raw, "echo", bool, "true or false") is True and raw.get("logprobs", b"null") != b"null"
    return Parsed(
        kind=kind,
        body=body,
        model=_take(raw, "model", str, "a string") or "",
        stream=_take(raw, "stream", bool, "true or false") is True,
        choices=max(1, _integer(raw, "n") or 1),
        prompts=prompts,
        prompt_tokens=max(1, prompt_tokens),
        output_tokens=max(1, min(limit, MAX_EXPECTED_OUTPUT_TOKENS)),
        media=kind is Kind.CHAT and _has_media(raw.get("messages", b"")),
        echo_logprobs=echo,
        seeded=raw.get("seed", b"null") != b"null",
    )


def _raw_members(body: bytes) -> dict[str, bytes]:
    """The bytes of the members that count here."""
    raw: dict[str, bytes] = {}
    for member in scan.members(body):
        if member.name in MEMBERS:
            raise BadRequest(f"{member.name} is set by the router, not by clients; leave it out.", param=member.name)
        if member.name in _READ:
            if member.name in raw:
                raise BadRequest(f"{member.name} is given twice; give it once.", param=member.name)
            raw[member.name] = body[member.start : member.end]
    return raw


def _take(raw: dict[str, bytes], name: str, kind: type[T], what: str) -> T | None:
    value = raw.get(name)
    if value is None or value == b"null":
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest(f"{name} must be {what}.", param=name) from None


def _integer(raw: dict[str, bytes], name: str) -> int | None:
    """A whole number; `5.0` is one too."""
    value = _take(raw, name, float, "a number")
    if value is None:
        return None
    if not value.is_integer() or abs(value) > 2**53:
        raise BadRequest(f"{name} must be a whole number within bounds.", param=name)
    return int(value)


def _prompt(raw: dict[str, bytes], kind: Kind) -> tuple[int, int]:
    """Number of prompts, and tokens of all of them."""
    if kind is Kind.CHAT:
        return 1, len(raw.get("messages", b"")) // BYTES_A_TOKEN
    prompt = raw.get("prompt", b"")
    if not prompt.startswith(b"["):
        return 1, (len(prompt) - 2) // BYTES_A_TOKEN
    inner = prompt[1:-1].strip()
    if inner[:1].isdigit() or inner[:1] == b"-":
        return 1, inner.count(b",") + 1
    return _listed_prompts(prompt)


def _listed_prompts(prompt: bytes) -> tuple[int, int]:
    try:
        items = msgspec.json.decode(prompt, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest("prompt must be text, token ids, or a list of either.", param="prompt") from None
    tokens = 0
    for item in map(bytes, items):
        tokens += item.count(b",") + 1 if item.startswith(b"[") else len(item) // BYTES_A_TOKEN
    return max(1, len(items)), tokens


def _has_media(messages: bytes) -> bool:
    """True if a content part is an image; most requests are told by one substring search.

    A `\\u` may hide the word from the search, so such bodies are decoded too.
    """
    if b"image_url" not in messages and b"\\u" not in messages:
        return False
    try:
        decoded: Any = msgspec.json.decode(messages)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest("messages must be a list of messages.", param="messages") from None
    contents = (item.get("content") for item in decoded if isinstance(item, dict)) if isinstance(decoded, list) else ()
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return any(isinstance(part, dict) and part.get("type") == "image_url" for part in parts)
