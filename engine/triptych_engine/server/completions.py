"""The shapes of `/v1/completions`."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from triptych_engine.server.choice import Piece, TokenReport
from triptych_engine.server.shapes import Answer, Usage, finite


class Logprobs(msgspec.Struct, frozen=True):
    """Columns with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice, or a piece of it."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or one event of its stream."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    object: str = "text_completion"
    usage: Usage | UnsetType | None = UNSET


class CompletionShape:
    """Writes `/v1/completions` answers."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._opened: set[int] = set()

    def opening(self, choice: int) -> None:
        """A completion's stream begins with its text."""

    def chunk(self, piece: Piece, usage: Usage | UnsetType | None) -> Completion:
        """One event."""
        first = piece.choice not in self._opened
        self._opened.add(piece.choice)
        return self._completion([self._choice(piece, first=first)], usage)

    def usage_chunk(self, usage: Usage) -> Completion:
        """The last event."""
        return self._completion([], usage)

    def whole(self, pieces: list[Piece], usage: Usage, extra: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        completion = self._completion([self._choice(piece, first=True) for piece in pieces], usage)
        return {**msgspec.to_builtins(completion), **extra}

    def _completion(self, choices: list[Choice], usage: Usage | UnsetType | None) -> Completion:
        answer = self._answer
        return Completion(
            id=f"cmpl-{answer.request_id}", created=answer.created, model=answer.model, choices=choices, usage=usage
        )

    def _choice(self, piece: Piece, *, first: bool) -> Choice:
        answer = self._answer
        echo = answer.echo[piece.choice // answer.choices_per_prompt] if answer.echo and first else ""
        return Choice(
            index=piece.choice,
            text=echo + piece.text,
            logprobs=self._logprobs(piece.reports) if piece.reports else None,
            finish_reason=piece.finish_reason,
            token_ids=answer.ids(piece),
            prompt_token_ids=answer.prompt_of(piece.choice) if first else UNSET,
        )

    def _logprobs(self, reports: tuple[TokenReport, ...]) -> Logprobs:
        text = self._answer.token_text
        return Logprobs(
            tokens=[text(report.token_id) for report in reports],
            token_logprobs=[finite(report.logprobs.chosen) for report in reports],
            top_logprobs=[self._top(report) for report in reports],
            text_offset=[report.text_offset for report in reports],
        )

    def _top(self, report: TokenReport) -> dict[str, float]:
        text = self._answer.token_text
        top = {text(token_id): finite(logprob) for token_id, logprob in reversed(report.logprobs.top)}
        top.setdefault(text(report.token_id), finite(report.logprobs.chosen))
        return dict(sorted(top.items(), key=lambda item: -item[1]))
