"""A scheduler that is driven by lines of text and answers in lines of text.

    core blocks=9 batch=64 sequences=4 share=50      a fresh core; block 0 is padding
    submit NAME prompt=N [text=LETTER] [max=N] [n=N] [mode=serve|prefill|pull]
    step                                             decide, compute and commit
    skip times=N                                     so many steps, told without what they computed
    pulled NAME | failed NAME                        the server's answer to a pull
    release NAME | cancel NAME                       of a lease (named like its request), of a request

An answer to `step` says who was admitted, preempted or pulled, what each row computes, and how blocks are
counted afterwards. Positions are written `first..last`; `+` marks a row after which a token is sampled, and
`(kept)` one whose KV stands in a shared block and is not written again.
"""

from collections.abc import Iterator

from fakes.core_harness import make_submit, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.commit import commit
from triptych_engine.core.engine import core_state
from triptych_engine.core.inbox import HANDLERS
from triptych_engine.core.request import Sequence
from triptych_engine.core.state import CoreState
from triptych_engine.executor.base import PlanRow
from triptych_engine.executor.sim import load_sim
from triptych_engine.messages import (
    Cancel,
    Inbox,
    LeaseGranted,
    Mode,
    Outbox,
    PullEnded,
    PullWanted,
    Rejected,
    ReleaseLease,
)
from triptych_engine.schedule.batch import Batch, batch


class Transcript:
    """Runs commands; each returns its answer."""

    def __init__(self) -> None:
        self._said: list[Outbox] = []
        self._wanted: dict[str, PullWanted] = {}
        self._state: CoreState | None = None

    def run(self, command: str) -> list[str]:
        """The answer to one command."""
        verb, *rest = command.split()
        options = dict(word.split("=", 1) for word in rest if "=" in word)
        name = next((word for word in rest if "=" not in word), "")
        if verb == "core":
            return self._core(options)
        if verb == "step":
            return list(self._step())
        if verb == "skip":
            lines = [line for _ in range(int(options["times"])) for line in self._step()]
            return [*(line for line in lines[:-1] if line[0] not in " ="), lines[-1]]
        return self._tell(self._message(verb, name, options))

    @property
    def state(self) -> CoreState:
        assert self._state is not None, "a transcript begins with `core`"
        return self._state

    def _core(self, options: dict[str, str]) -> list[str]:
        config = sim_config(
            kv_blocks=int(options["blocks"]),
            max_batch_tokens=int(options.get("batch", 64)),
            max_sequences=int(options.get("sequences", 8)),
            lease_share_percent=int(options.get("share", 50)),
        )
        executor = load_sim(config)
        executor.bind(memoryview(bytearray(executor.info.layout.pool_bytes)))
        self._state = core_state(executor, config, self._said.append)
        return [self._counts()]

    def _message(self, verb: str, name: str, options: dict[str, str]) -> Inbox:
        if verb == "submit":
            return make_submit(
                [ord(options.get("text", name[0]))] * int(options["prompt"]),
                request_id=name,
                mode=Mode(options.get("mode", "serve")),
                lease=name,
                sampling=SamplingParams(max_tokens=int(options.get("max", 100)), n=int(options.get("n", 1))),
                eos=(),
            )
        if verb in ("pulled", "failed"):
            received = tuple(one.index for one in self._wanted[name].blocks)
            return PullEnded(id=name, ok=verb == "pulled", received=received)
        return {"release": ReleaseLease(lease=name), "cancel": Cancel(id=name)}[verb]

    def _tell(self, message: Inbox) -> list[str]:
        HANDLERS[type(message)](self.state, message)
        return [*self._heard(), self._counts()]

    def _step(self) -> Iterator[str]:
        state = self.state
        decided = batch(state.queues, state.pool, state.prefix, state.budget)
        yield from self._decision(decided)
        for wanted in decided.pulls:
            self._wanted[wanted.id] = wanted
        commit(state, decided, state.executor.execute(decided.plan) if decided.plan.rows else [])
        yield from self._heard()
        yield self._counts()

    def _decision(self, decided: Batch) -> Iterator[str]:
        for title, sequences in (("preempt", decided.preempted), ("admit", decided.admitted)):
            if sequences:
                yield f"{title} {', '.join(_name(one) for one in sequences)}"
        for wanted in decided.pulls:
            yield f"pull {wanted.id}: {', '.join(f'{one.index} ({one.tokens})' for one in wanted.blocks) or 'nothing'}"
        for row, sequence in zip(decided.plan.rows, decided.sequences, strict=True):
            yield f"  {_name(sequence)} {_row(row)}"
        if not decided.plan.rows:
            yield "  idle"

    def _heard(self) -> Iterator[str]:
        for delta in self.state.deltas:
            if delta.finish_reason is not None:
                length = delta.first_position + len(delta.token_ids)
                yield f"end {delta.id}.{delta.choice} {delta.finish_reason} after {length}"
        self.state.deltas.clear()
        for message in self._said:
            if isinstance(message, LeaseGranted):
                yield f"lease {message.lease}: {len(message.blocks)} blocks, {message.num_tokens} tokens"
            elif isinstance(message, Rejected):
                yield f"reject {message.id}: {message.code}"
        self._said.clear()

    def _counts(self) -> str:
        counts = self.state.pool.counts()
        waiting = ", ".join(_name(one) for one in self.state.queues.waiting)
        blocks = f"free {counts.free}, cached {counts.cached}, held {counts.held}, in transfer {counts.in_transfer}"
        return f"= {blocks}" + (f"; waiting {waiting}" if waiting else "")


def _name(sequence: Sequence) -> str:
    return f"{sequence.request.submit.id}.{sequence.choice}"


def _row(row: PlanRow) -> str:
    last = row.first_position + len(row.token_ids) - 1
    span = f"{row.first_position}..{last}" if last > row.first_position else str(last)
    return span + ("+" if row.sample else "") + (" (kept)" if row.stored_from > last else "")


def play(text: str) -> str:
    """The transcript with every answer as it is now: comments and commands are kept, answers replaced."""
    player = Transcript()
    lines: list[str] = []
    answering = False
    for line in text.splitlines():
        if line == "----":
            answering = True
        elif not line.strip():
            answering = False
            lines.append("")
        elif line.startswith("#"):
            lines.append(line)
        elif not answering:
            lines += [line, "----", *player.run(line)]
    return "\n".join(lines) + "\n"
