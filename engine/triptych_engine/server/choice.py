"""From the tokens of one choice to the pieces that a client gets: detokenised, cut at stops, counted."""

from collections.abc import Callable
from dataclasses import dataclass

from triptych_contract.sampling import SamplingParams
from triptych_engine.messages import Delta, FinishReason, TokenLogprobs
from triptych_engine.server.detokenize import Decode, Detokenizer
from triptych_engine.server.stop import StopMatcher

TokenText = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class TokenReport:
    """One token with its log-probabilities, and where in the output its text begins."""

    token_id: int
    logprobs: TokenLogprobs
    text_offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event delivers of one choice.

    Attributes:
        choice: Index of the choice in the answer.
        text: New text.
        first_position: Output position of the first token.
        token_ids: New tokens, a hidden stop token included.
        reports: One for each token, if log-probabilities are wanted.
        finish_reason: `stop` or `length` with the last piece.
        cursor: Characters sent so far, this piece included.
    """

    choice: int
    text: str
    first_position: int
    token_ids: tuple[int, ...]
    reports: tuple[TokenReport, ...]
    finish_reason: str | None
    cursor: int


class ChoiceStream:
    """One choice while it grows.

    Args:
        choice: Index of the choice in the answer.
        sampling: For stop strings and `min_tokens`.
        decode: Token ids to text.
    """

    def __init__(self, choice: int, sampling: SamplingParams, decode: Decode) -> None:
        self.choice = choice
        self.num_tokens = 0
        self.finished = False
        self._sampling = sampling
        self._detokenizer = Detokenizer(decode)
        self._matcher = StopMatcher(sampling.stop)
        self._sent = 0
        self._first = 0
        self._ids: list[int] = []
        self._reports: list[TokenReport] = []

    def push(self, delta: Delta) -> Piece | None:
        """Take tokens; a piece once there is text to send or the choice ends, else they wait for the next."""
        reason = None if delta.finish_reason is None else delta.finish_reason.value
        text = ""
        last = len(delta.token_ids) - 1
        for index, token_id in enumerate(delta.token_ids):
            # A choice that the core ends with STOP ends with its stop token, which the client does not see.
            hidden = index == last and delta.finish_reason is FinishReason.STOP
            self._note(token_id, delta.logprobs[index] if delta.logprobs else None, len(text))
            text += "" if hidden else self._text(token_id)
            if self._matcher.stopped:
                return self._end(text, FinishReason.STOP.value)
        if reason is not None:
            return self._end(text + self._rest(), self._stopped_late() or reason)
        return self._piece(text, None) if text else None

    def _note(self, token_id: int, logprobs: TokenLogprobs | None, pending: int) -> None:
        self._ids.append(token_id)
        self.num_tokens += 1
        if logprobs is not None:
            self._reports.append(TokenReport(token_id, logprobs, self._sent + pending + self._matcher.held_characters))

    def _text(self, token_id: int) -> str:
        piece = self._detokenizer.push((token_id,))
        armed = self.num_tokens > self._sampling.min_tokens
        return self._matcher.feed(piece, armed=armed) if piece else ""

    def _rest(self) -> str:
        text = self._matcher.feed(self._detokenizer.finish())
        return text if self._matcher.stopped else text + self._matcher.finish()

    def _stopped_late(self) -> str | None:
        return FinishReason.STOP.value if self._matcher.stopped else None

    def _end(self, text: str, reason: str) -> Piece:
        self.finished = True
        return self._piece(text, reason)

    def _piece(self, text: str, reason: str | None) -> Piece:
        self._sent += len(text)
        piece = Piece(self.choice, text, self._first, tuple(self._ids), tuple(self._reports), reason, self._sent)
        self._first += len(self._ids)
        self._ids, self._reports = [], []
        return piece
