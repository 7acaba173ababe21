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
from triptych_engine.server.times import Times


class Generation:
    """One answer while it is made.

    Args:
        engine: The parts of the server.
        submits: One for each prompt.
        ticket: Of a decode leg.
        arrived_s: Monotonic time at which the request came.
    """

    def __init__(self, engine: Engine, submits: Sequence[Submit], ticket: Ticket | None, *, arrived_s: float) -> None:
        self._engine = engine
        self._submits = submits
        self._ticket = ticket
        self._prompt_tokens = sum(len(submit.token_ids) for submit in submits)
        # What a hand-over brings is not cached: for the client the producer's prefix cache counts.
        self._cached = {} if ticket is None else {submits[0].id: ticket.remote_num_cached_tokens}
        self._times = Times(arrived_s=arrived_s, submitted_s=arrived_s)
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
        self._times.submitted_s = self._engine.clock.now_s()
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
            gap_s = self._times.note(stream.choice, event.at_s, delta.admitted_s)
            if gap_s is not None:
                self._engine.metrics.observe("vllm:inter_token_latency_seconds", gap_s)
            self._cached.setdefault(delta.id, delta.cached_tokens)
        piece = stream.push(delta)
        if stream.finished:
            self._open -= 1
            call.end_choice(delta.id, delta.choice)
            self._engine.metrics.finish(piece.finish_reason or "stop" if piece else "stop")
        return piece

    def _observe(self) -> None:
        metrics, usage = self._engine.metrics, self.usage
        tokens = {stream.choice: stream.num_tokens for stream in self._streams.values()}
        for name, seconds in self._times.observations(tokens, end_s=self._engine.clock.now_s()):
            metrics.observe(name, seconds)
        metrics.observe("vllm:request_prompt_tokens", usage.prompt_tokens)
        metrics.observe("vllm:request_generation_tokens", usage.completion_tokens)


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
