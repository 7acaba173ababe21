"""Requests and sequences: what the core knows of the work in it, and the table of a sequence's life.

    WAITING ──► RUNNING ──► LEASED ──► FINISHED
       ▲  └──► PULLING ─┘      (a prefill leg's blocks wait for their reader)
       └── preempted ──┘       every state may end in FINISHED

A request is one prompt; a sequence is one choice of its output. The prompt is computed by one sequence, the
carrier; the others fork from it. Positions count from 0 at the first prompt token.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from triptych_contract.hashing import chain_hashes
from triptych_engine.messages import Mode, Submit


class State(StrEnum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    PULLING = "pulling"
    RUNNING = "running"
    LEASED = "leased"
    FINISHED = "finished"


MOVES: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.WAITING: frozenset({State.PULLING, State.RUNNING, State.FINISHED}),
        State.PULLING: frozenset({State.RUNNING, State.FINISHED}),
        State.RUNNING: frozenset({State.WAITING, State.LEASED, State.FINISHED}),
        State.LEASED: frozenset({State.FINISHED}),
        State.FINISHED: frozenset(),
    }
)
"""Every lawful move."""


class Request:
    """One prompt.

    Attributes:
        submit: As the server sent it.
        arrival: Number in order of arrival; earlier ones go first.
        open_choices: Choices whose end has not been told.
        sequences: Live sequences by choice.
        forked: True once every open choice has a sequence of its own.
        stop_ids: Tokens that end a choice.
        admitted_s: Monotonic time at which it first got its blocks; 0 before.
    """

    __slots__ = ("admitted_s", "arrival", "forked", "open_choices", "sequences", "stop_ids", "stop_ids_tuple", "submit")

    def __init__(self, submit: Submit, *, arrival: int) -> None:
        sampling = submit.sampling
        choices = 1 if submit.mode is Mode.PREFILL else sampling.n
        self.submit = submit
        self.arrival = arrival
        self.open_choices = set(range(choices))
        self.sequences: dict[int, Sequence] = {}
        self.admitted_s = 0.0
        self.forked = choices == 1
        eos = () if sampling.ignore_eos else submit.eos_token_ids
        self.stop_ids_tuple = tuple(dict.fromkeys((*eos, *sampling.stop_token_ids)))
        self.stop_ids = frozenset(self.stop_ids_tuple)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.submit.token_ids)


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request, and its KV.

    Attributes:
        key: Handle in plans, unique in this process.
        request: What it belongs to.
        choice: Which choice of the request.
        tokens: Known tokens: prompt, then output.
        state: Where it is in its life.
        table: Physical blocks, in chain order; empty unless pulling, running or leased.
        hashes: Chain hashes of the full blocks of `tokens`, as far as they were needed.
        num_computed: Positions that need no more computing.
        num_stored: Positions whose KV stands in `table`; above `num_computed` while the last position is
            computed again only for its logits.
        num_cached: Prompt tokens that were not computed here; None before the first admission.
        num_registered: Full blocks that were offered to the prefix cache.
        is_fork: Its prompt was computed by another sequence of the request.
        wants_pull: A pull has still to be asked for.
        ended_in_pull: It has ended, but its blocks may still be written to.
    """

    key: int
    request: Request
    choice: int
    tokens: list[int]
    state: State = State.WAITING
    table: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_computed: int = 0
    num_stored: int = 0
    num_cached: int | None = None
    num_registered: int = 0
    is_fork: bool = False
    wants_pull: bool = False
    ended_in_pull: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """Arrival order, by which sequences are admitted, and preempted from the end."""
        return (self.request.arrival, self.choice)

    @property
    def num_remaining(self) -> int:
        """Known tokens that are not computed yet; 1 for a sequence that decodes."""
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> int:
        """Tokens of the output so far."""
        return len(self.tokens) - self.request.num_prompt

    def move(self, state: State) -> None:
        """Go to another state; an unlawful move is a defect of ours."""
        if state not in MOVES[self.state]:
            raise RuntimeError(f"a sequence cannot go from {self.state} to {state}")
        self.state = state

    def chain(self, num_blocks: int, *, block_tokens: int) -> Series[bytes]:
        """Hashes of the first `num_blocks` full blocks, each computed once.

        A block is hashed only when its tokens are all known, and known tokens never change.
        """
        if len(self.hashes) < num_blocks:
            submit = self.request.submit
            self.hashes += chain_hashes(
                self.hashes[-1] if self.hashes else submit.chain_root,
                self.tokens,
                block_tokens=block_tokens,
                media=submit.media,
                start_block=len(self.hashes),
            )
        return self.hashes[:num_blocks]


def lacks_embeddings(submit: Submit, *, first: int) -> bool:
    """True if positions from `first` on include an image whose embeddings did not come with the request."""
    given = {(one.first, one.count) for one in submit.embeddings}
    return any(span.first + span.count > first and (span.first, span.count) not in given for span in submit.media)
