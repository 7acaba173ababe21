"""What both kinds of answers share: usage, ids, and the texts beside log-probabilities."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from triptych_engine.server.choice import Piece, TokenText

MIN_LOGPROB = -9999.0
"""JSON has no infinity; clients know this floor."""


class CachedTokens(msgspec.Struct, frozen=True):
    """Prompt tokens that were not computed."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    """Usage with its sum."""
    total = prompt_tokens + completion_tokens
    return Usage(prompt_tokens, completion_tokens, total, CachedTokens(min(cached_tokens, prompt_tokens)))


@dataclass(frozen=True, slots=True)
class Answer:
    """Facts of one answer; the same on every attempt of a request.

    Attributes:
        request_id: Of the request; the answer's id derives from it.
        created: Unix seconds.
        model: Served name.
        prompt_ids: Token ids of each prompt.
        choices_per_prompt: Choice `i` belongs to prompt `i // choices_per_prompt`.
        return_token_ids: Report token ids beside texts.
        token_text: One token by itself as text.
        echo: Prompt texts that stand before the outputs; empty without echo.
    """

    request_id: str
    created: int
    model: str
    prompt_ids: tuple[list[int], ...]
    choices_per_prompt: int
    return_token_ids: bool
    token_text: TokenText
    echo: tuple[str, ...] = ()

    def ids(self, piece: Piece) -> tuple[int, ...] | UnsetType:
        """Token ids of a piece, if they are wanted."""
        return piece.token_ids if self.return_token_ids else UNSET

    def prompt_of(self, choice: int) -> list[int] | UnsetType:
        """Token ids of a choice's prompt, if they are wanted."""
        return self.prompt_ids[choice // self.choices_per_prompt] if self.return_token_ids else UNSET


class Shape(Protocol):
    """Writes answers of one endpoint."""

    def opening(self, choice: int) -> Any:
        """The event before a choice's first piece; None if there is none."""
        ...

    def chunk(self, piece: Piece, usage: Usage | UnsetType | None) -> Any:
        """One event."""
        ...

    def usage_chunk(self, usage: Usage) -> Any:
        """The last event, which carries the usage."""
        ...

    def whole(self, pieces: list[Piece], usage: Usage, extra: dict[str, Any]) -> Any:
        """The answer that is not streamed; one piece for each choice, `extra` holds top-level members."""
        ...


def finite(logprob: float) -> float:
    """A log-probability that JSON can carry."""
    return max(logprob, MIN_LOGPROB)
