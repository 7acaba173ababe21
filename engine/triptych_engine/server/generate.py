"""From tokens of the core to the answer: pieces of all choices in order, whole or as a stream."""

from collections.abc import AsyncIterator, Sequence

from triptych_contract.errors import DeadlineExceeded, Internal
from triptych_contract.handover import Ticket
from triptych_engine.messages import FinishReason, Submit
from triptych_engine.server.choice import ChoiceStream, Piece
from triptych_engine.server.engine import Engine
from triptych_engine.server.legs import take_blocks
from triptych_engine.server.requests import OpenCall, Tokens
from triptych_engine.server.shapes import Usage, usage_of


class Generation:
    """One answer while it is made.

    Args:
        engine: The parts of the server.
        submits: One for each prompt.
        ticket: Of a decode leg.
    """

    def __init__(self, engine: Engine, submits: Sequence[Submit], ticket: Ticket | None) -> None:
        self._engine = engine
        self._submits = submits
        self._ticket = ticket
        self._prompt_tokens = sum(len(submit.token_ids) for submit in submits)
        self._cached: dict[str, int] = {}
        self._last_s: dict[int, float] = {}
        self._began_s = engine.clock.now_s()
        self._first_s: float | None = None
        choices = [(submit, choice) for submit in submits for choice in range(submit.sampling.n)]
        self._streams = {
            (submit.id, choice): ChoiceStream(index, submit.sampling, engine.card.tokenizer.decode)
            for index, (submit, choice) in enumerate(choices)
        }
        self._open = len(self._streams)

    @property
    def usage(self) -> Usage:
        """Tokens up to now."""
        completion = sum(stream.num_tokens for stream in self._streams.values())
        return usage_of(self._prompt_tokens, completion, sum(self._cached.values()))

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces; leaving early cancels at the core.

        Raises:
            TriptychError: The request cannot go on.
        """
        with self._engine.table.open(self._submits) as call:
            if self._ticket is not None:
                await take_blocks(self._engine, call, self._ticket)
                self._ticket = None
            while self._open:
                event = await call.next()
                if not isinstance(event, Tokens):
                    raise Internal("The core gave an answer that nobody asked for.")
                piece = self._take(call, event)
                if piece is not None:
                    yield piece
        self._observe()

    @property
    def unsettled(self) -> Ticket | None:
        """The ticket, as long as its blocks have not been pulled."""
        return self._ticket

    def _take(self, call: OpenCall, event: Tokens) -> Piece | None:
        delta = event.delta
        _check_end(delta.finish_reason)
        stream = self._streams[delta.id, delta.choice]
        if stream.finished:
            return None
        if delta.token_ids:
            self._time(stream.choice, event.at_s)
            self._cached.setdefault(delta.id, delta.cached_tokens)
        piece = stream.push(delta)
        if stream.finished:
            self._open -= 1
            call.end_choice(delta.id, delta.choice)
            self._engine.metrics.finish(piece.finish_reason or "stop" if piece else "stop")
        return piece

    def _time(self, choice: int, at_s: float) -> None:
        metrics = self._engine.metrics
        if self._first_s is None:
            self._first_s = at_s
            metrics.observe("vllm:time_to_first_token_seconds", at_s - self._began_s)
        elif choice in self._last_s:
            metrics.observe("vllm:inter_token_latency_seconds", at_s - self._last_s[choice])
        self._last_s[choice] = at_s

    def _observe(self) -> None:
        metrics, usage = self._engine.metrics, self.usage
        end_s = self._engine.clock.now_s()
        first_s = end_s if self._first_s is None else self._first_s
        metrics.observe("vllm:e2e_request_latency_seconds", end_s - self._began_s)
        metrics.observe("vllm:request_decode_time_seconds", end_s - first_s)
        metrics.observe("vllm:request_prompt_tokens", usage.prompt_tokens)
        metrics.observe("vllm:request_generation_tokens", usage.completion_tokens)
        for stream in self._streams.values():
            if stream.num_tokens > 1 and stream.choice in self._last_s:
                mean_s = (self._last_s[stream.choice] - first_s) / (stream.num_tokens - 1)
                metrics.observe("vllm:request_time_per_output_token_seconds", mean_s)


def merge(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece for each choice."""
    by_choice: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_choice.setdefault(piece.choice, []).append(piece)
    return [_joined(by_choice[choice]) for choice in sorted(by_choice)]


def _joined(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        choice=pieces[0].choice,
        text="".join(piece.text for piece in pieces),
        first_position=pieces[0].first_position,
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        reports=tuple(report for piece in pieces for report in piece.reports),
        finish_reason=pieces[-1].finish_reason,
        cursor=pieces[-1].cursor,
    )


def _check_end(reason: FinishReason | None) -> None:
    """Ends that are errors for the client."""
    if reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("The request's time is over.")
    if reason in (FinishReason.CANCELLED, FinishReason.FAILED):
        raise Internal("The engine could not go on with this request.")
