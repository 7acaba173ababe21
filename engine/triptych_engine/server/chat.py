"""The shapes of `/v1/chat/completions`."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from triptych_engine.server.choice import Piece, TokenReport
from triptych_engine.server.shapes import Answer, Usage, finite


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A chosen token and its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    """One entry for each token."""

    content: list[TokenLogprob]
    refusal: None = None


class Message(msgspec.Struct, frozen=True):
    """The assistant's whole message."""

    content: str
    role: str = "assistant"
    refusal: None = None


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event adds to the message."""

    role: str | None = None
    content: str | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice, or a piece of it."""

    index: int
    message: Message | UnsetType = UNSET
    delta: Part | UnsetType = UNSET
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or one event of its stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatShape:
    """Writes `/v1/chat/completions` answers."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._prompt_told = False

    def opening(self, choice: int) -> Chat:
        """The event that tells the role."""
        told, self._prompt_told = self._prompt_told, True
        prompt = UNSET if told else self._answer.prompt_of(choice)
        return self._chunk([Choice(index=choice, delta=Part(role="assistant", content=""))], UNSET, prompt)

    def chunk(self, piece: Piece, usage: Usage | UnsetType | None) -> Chat:
        """One event."""
        choice = Choice(
            index=piece.choice,
            delta=Part(content=piece.text) if piece.text else Part(),
            logprobs=self._logprobs(piece.reports) if piece.reports else None,
            finish_reason=piece.finish_reason,
            token_ids=self._answer.ids(piece),
        )
        return self._chunk([choice], usage)

    def usage_chunk(self, usage: Usage) -> Chat:
        """The last event."""
        return self._chunk([], usage)

    def whole(self, pieces: list[Piece], usage: Usage, extra: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            Choice(
                index=piece.choice,
                message=Message(piece.text),
                logprobs=self._logprobs(piece.reports) if piece.reports else None,
                finish_reason=piece.finish_reason,
                token_ids=self._answer.ids(piece),
            )
            for piece in pieces
        ]
        chat = Chat(
            id=self._id,
            object="chat.completion",
            created=self._answer.created,
            model=self._answer.model,
            choices=choices,
            usage=usage,
            prompt_token_ids=self._answer.prompt_of(0),
        )
        return {**msgspec.to_builtins(chat), **extra}

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self._answer.request_id}"

    def _chunk(
        self, choices: list[Choice], usage: Usage | UnsetType | None, prompt: list[int] | UnsetType = UNSET
    ) -> Chat:
        return Chat(
            id=self._id,
            object="chat.completion.chunk",
            created=self._answer.created,
            model=self._answer.model,
            choices=choices,
            usage=usage,
            prompt_token_ids=prompt,
        )

    def _logprobs(self, reports: tuple[TokenReport, ...]) -> Logprobs:
        return Logprobs([self._token(report) for report in reports])

    def _token(self, report: TokenReport) -> TokenLogprob:
        top = [TopLogprob(*self._text(token_id, logprob)) for token_id, logprob in report.logprobs.top]
        return TokenLogprob(*self._text(report.token_id, report.logprobs.chosen), top)

    def _text(self, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        text = self._answer.token_text(token_id)
        return text, finite(logprob), list(text.encode())
