"""All that the core owns, and the few moves by which requests begin and end in it.

Everything else (the inbox, the commit of a step) is written in terms of these moves, so that a request's
blocks, its place in the queues and what the server is told about it change together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from triptych_contract.errors import TriptychError
from triptych_engine.core.counters import Counters
from triptych_engine.core.deadlines import Deadlines
from triptych_engine.core.intake import Limits
from triptych_engine.core.request import Request, Sequence, State
from triptych_engine.executor.base import Executor
from triptych_engine.kv.blocks import BlockPool
from triptych_engine.kv.prefix import EVENT_DIGITS, PrefixCache
from triptych_engine.messages import Delta, FinishReason, KVChanged, Mode, Outbox, Rejected, Submit
from triptych_engine.schedule.budget import Budget
from triptych_engine.schedule.queues import Queues

Send = Callable[[Outbox], None]


@dataclass(slots=True)
class CoreState:
    """What the core owns; used by its one thread only.

    Attributes:
        executor: What computes.
        budget: Bounds of a step.
        limits: Bounds of a request.
        send: Hands one message to the server.
        prefix: The prefix cache.
        pool: The block pool.
        queues: Sequences by state.
        requests: Live requests by id.
        leases: Sequences whose blocks are in transfer, by lease.
        deltas: Tokens and ends to be told after this step.
        changed: True if the server's picture of load and blocks is out of date.
    """

    executor: Executor
    budget: Budget
    limits: Limits
    send: Send
    prefix: PrefixCache
    pool: BlockPool
    queues: Queues = field(default_factory=Queues)
    requests: dict[str, Request] = field(default_factory=dict)
    leases: dict[str, Sequence] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    counters: Counters = field(default_factory=Counters)
    deltas: list[Delta] = field(default_factory=list)
    changed: bool = True
    arrivals: int = 0
    keys: int = 0

    def add(self, submit: Submit) -> Request:
        """Take a request in; its carrier waits."""
        self.arrivals += 1
        request = Request(submit, arrival=self.arrivals)
        self.requests[submit.id] = request
        self.deadlines.add(request)
        carrier = self.sequence(request, choice=0)
        carrier.wants_pull = submit.mode is Mode.PULL
        self.queues.enqueue(carrier)
        return request

    def sequence(self, request: Request, *, choice: int) -> Sequence:
        """A fresh sequence of a request, in no queue yet."""
        self.keys += 1
        made = Sequence(key=self.keys, request=request, choice=choice, tokens=list(request.submit.token_ids))
        request.sequences[choice] = made
        return made

    def tell_end(self, request: Request, choice: int, reason: FinishReason) -> None:
        """A choice ends without a further token."""
        request.open_choices.discard(choice)
        sequence = request.sequences.get(choice)
        self.deltas.append(
            Delta(
                id=request.submit.id,
                choice=choice,
                first_position=sequence.num_output if sequence else 0,
                token_ids=(),
                finish_reason=reason,
            )
        )

    def end_choice(self, request: Request, choice: int, reason: FinishReason) -> None:
        """End one open choice; what the others still need stays."""
        self.tell_end(request, choice, reason)
        if not request.open_choices:
            self.end_request(request)
        elif request.forked:
            self.end_sequence(request.sequences[choice])
        elif choice in request.sequences:
            # The carrier computes the prompt for all choices, so it goes on for the first of the others.
            carrier = request.sequences.pop(choice)
            carrier.choice = min(request.open_choices)
            request.sequences[carrier.choice] = carrier

    def end_request(self, request: Request) -> None:
        """Take back all that a request holds, except blocks that a pull may still write to."""
        request.open_choices.clear()
        for sequence in list(request.sequences.values()):
            if sequence.state is State.PULLING:
                sequence.ended_in_pull = True
            else:
                self.end_sequence(sequence)

    def end_sequence(self, sequence: Sequence) -> None:
        """Release a sequence's blocks; the request goes with its last sequence."""
        self.pool.release(sequence.table)
        sequence.table = []
        self.queues.move(sequence, State.FINISHED)
        self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """A sequence is no longer the request's."""
        request = sequence.request
        del request.sequences[sequence.choice]
        self.changed = True
        if not request.sequences:
            request.open_choices.clear()
            self.deadlines.drop(request)
            del self.requests[request.submit.id]

    def reject(self, request: Request, error: TriptychError) -> None:
        """End a request with an error."""
        self.refuse(request.submit.id, error)
        self.end_request(request)

    def refuse(self, request_id: str, error: TriptychError) -> None:
        """Tell the server that a request gets an error."""
        self.send(Rejected(id=request_id, code=error.code, message=error.message, retry_after_ms=error.retry_after_ms))

    def register(self, sequence: Sequence) -> None:
        """Offer a sequence's newly computed full blocks to the prefix cache."""
        full = sequence.num_computed // self.budget.block_tokens
        if full <= sequence.num_registered:
            return
        chain = sequence.chain(full, block_tokens=self.budget.block_tokens)
        for index in range(sequence.num_registered, full):
            parent = chain[index - 1] if index else sequence.request.submit.chain_root
            self.prefix.insert(sequence.table[index], chain[index], parent=parent)
        sequence.num_registered = full
        self.publish(sequence.request.submit.prefix)

    def publish(self, affinity: str = "") -> None:
        """Tell the server which blocks became reusable or stopped being so."""
        events = self.prefix.take_events()
        if events.stored or events.removed:
            self.send(KVChanged(stored=_short(events.stored), removed=_short(events.removed), prefix=affinity))


def _short(hashes: list[bytes]) -> tuple[str, ...]:
    return tuple(identity.hex()[:EVENT_DIGITS] for identity in hashes)
