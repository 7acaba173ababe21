"""One turn of the core: messages in, one step decided, computed and committed, messages out.

    inbox → batch(queues, pool, prefix, budget) → StepPlan → executor.execute → commit → outbox

`Core` knows neither sockets nor processes: `loop` drives it in production, tests drive it by hand.
"""

import logging
from collections.abc import Sequence as Series
from typing import Protocol

from triptych_contract.clock import Clock
from triptych_contract.errors import Internal
from triptych_contract.program.logs import log_to
from triptych_engine.core.commit import check_results, commit
from triptych_engine.core.config import CoreConfig
from triptych_engine.core.inbox import HANDLERS, IMAGES_GONE, end
from triptych_engine.core.intake import Limits
from triptych_engine.core.request import Request, Sequence
from triptych_engine.core.state import CoreState, Send
from triptych_engine.executor.base import Executor, ExecutorInfo, Sampled, StepPlan
from triptych_engine.executor.cost import plan_seconds
from triptych_engine.failpoints import failpoint
from triptych_engine.kv.audit import audit
from triptych_engine.kv.blocks import BlockPool
from triptych_engine.kv.prefix import PrefixCache
from triptych_engine.messages import (
    Audit,
    AuditResult,
    CoreStats,
    Deltas,
    FinishReason,
    Inbox,
    Ready,
)
from triptych_engine.schedule.batch import Batch, batch
from triptych_engine.schedule.budget import Budget, lease_blocks

_LOG = logging.getLogger(__name__)

MAX_FAILED_STEPS = 2
"""Steps that may fail in a row: one may be a request's fault, the next one cannot be the same request's."""


class CoreFault(RuntimeError):
    """The core cannot go on; the sentence is safe to show."""


class StepBoard(Protocol):
    """Where the running step is shown."""

    def begin(self, *, now_ns: int, predicted_ns: int) -> None:
        """A step begins."""
        ...

    def end(self, *, step: int) -> None:
        """The step has ended."""
        ...


def max_context(info: ExecutorInfo) -> int:
    """Longest sequence in tokens: the model's bound, or what the whole KV pool holds."""
    return min(info.max_context, (info.layout.num_blocks - 1) * info.layout.block_tokens)


def ready(info: ExecutorInfo) -> Ready:
    """What the server is told once requests can be taken."""
    return Ready(
        layout=info.layout,
        fingerprint=info.fingerprint,
        kv_dtype=info.kv_dtype,
        vocab_size=info.vocab_size,
        max_context=max_context(info),
        profile=info.profile,
        embedding_dtype=info.embedding_dtype,
        embedding_bytes=info.embedding_bytes,
    )


def core_state(executor: Executor, config: CoreConfig, send: Send) -> CoreState:
    """A core without requests."""
    layout = executor.info.layout
    prefix = PrefixCache()
    pool = BlockPool(layout.num_blocks, prefix)
    return CoreState(
        executor=executor,
        budget=Budget(
            block_tokens=layout.block_tokens,
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_lease_blocks=lease_blocks(total=pool.total, share_percent=config.lease_share_percent),
        ),
        limits=Limits(
            max_context=max_context(executor.info),
            max_waiting=config.max_waiting,
            vocab_size=executor.info.vocab_size,
        ),
        send=send,
        prefix=prefix,
        pool=pool,
    )


class Core:
    """The core without its process.

    Args:
        executor: What computes; its pool is bound.
        config: Bounds of steps and queues.
        clock: The machine's monotonic clock.
        send: Hands one message to the server, in order.
        board: Shows the running step.
    """

    def __init__(self, executor: Executor, config: CoreConfig, *, clock: Clock, send: Send, board: StepBoard) -> None:
        self._state = core_state(executor, config, send)
        self._clock = clock
        self._board = board
        self._failed_steps = 0

    @property
    def next_deadline_s(self) -> float | None:
        """When a request's time is over next."""
        return self._state.deadlines.next_s()

    @property
    def num_live(self) -> int:
        """Requests and leases that are here."""
        return len(self._state.requests) + len(self._state.leases)

    def receive(self, message: Inbox) -> None:
        """Take one message of the server in."""
        if isinstance(message, Audit):
            self._state.send(AuditResult(id=message.id, faults=self.audit(), stats=self.stats()))
            return
        handler = HANDLERS.get(type(message))
        if handler is not None:
            handler(self._state, message)

    def step(self) -> bool:
        """Decide and compute one step.

        Returns:
            False if there was nothing to compute; only a message or a deadline can change that.

        Raises:
            CoreFault: The executor fails again and again.
        """
        decided = self.decide()
        if decided is None:
            return False
        self.compute(decided)
        return True

    def decide(self) -> Batch | None:
        """Expire deadlines and decide the next step; None if there is nothing to compute."""
        state = self._state
        begin_s = self._clock.now_s()
        for request in state.deadlines.expired(now_s=begin_s):
            end(state, request, FinishReason.DEADLINE)
        decided = batch(state.queues, state.pool, state.prefix, state.budget)
        self._announce(decided, now_s=begin_s)
        if not decided.plan.rows:
            self._flush()
            return None
        state.counters.scheduler_s += self._clock.now_s() - begin_s
        return decided

    def compute(self, decided: Batch) -> None:
        """Compute and commit a step that was decided just before.

        Raises:
            CoreFault: The executor fails again and again.
        """
        counters = self._state.counters
        begin_s = self._clock.now_s()
        self._board.begin(now_ns=int(begin_s * 1e9), predicted_ns=self._predicted_ns(decided.plan))
        try:
            self._execute(decided)
        finally:
            counters.step += 1
            self._board.end(step=counters.step)
        self._flush()
        if _LOG.isEnabledFor(logging.DEBUG):
            self._log_step(decided, self._clock.now_s() - begin_s)

    def _log_step(self, decided: Batch, seconds: float) -> None:
        """One line a step; benchmarks read it."""
        rows = decided.plan.rows
        tokens = sum(len(row.token_ids) for row in rows)
        step = self._state.counters.step
        log_to(_LOG, logging.DEBUG, "step", step=step, rows=len(rows), tokens=tokens, seconds=round(seconds, 6))

    def _predicted_ns(self, plan: StepPlan) -> int:
        return int(plan_seconds(self._state.executor.info.profile, plan) * 1e9)

    def _announce(self, decided: Batch, *, now_s: float) -> None:
        """Tell what was decided before the step is computed, so that the server pulls meanwhile."""
        state = self._state
        state.changed |= bool(decided.admitted or decided.preempted)
        state.publish()
        state.counters.preemptions += len(decided.preempted)
        for sequence in decided.admitted:
            _count_lookup(state, sequence)
            sequence.request.admitted_s = sequence.request.admitted_s or now_s
        for wanted in decided.pulls:
            state.send(wanted)
        for sequence in decided.refused:
            state.reject(sequence.request, IMAGES_GONE)

    def _execute(self, decided: Batch) -> None:
        """Execute and commit; a failure ends the requests of this step with an error."""
        try:
            failpoint("core.step")
            results: Series[Sampled] = self._state.executor.execute(decided.plan)
            check_results(decided, results)
            failpoint("core.commit")
            commit(self._state, decided, results)
        except Exception as error:
            _LOG.exception("a step failed: %s", error)
            self._failed_steps += 1
            self._reject_all(decided)
            if self._failed_steps >= MAX_FAILED_STEPS:
                raise CoreFault("The model's computation fails again and again.") from error
        else:
            self._failed_steps = 0

    def _reject_all(self, decided: Batch) -> None:
        requests: dict[str, Request] = {one.request.submit.id: one.request for one in decided.sequences}
        for request in requests.values():
            if request.sequences:
                self._state.reject(request, Internal("The model's computation failed."))

    def _flush(self) -> None:
        """Tell all tokens and ends of this turn in one message."""
        state = self._state
        if state.deltas:
            state.send(Deltas(at_s=self._clock.now_s(), items=tuple(state.deltas)))
            state.deltas.clear()
            state.changed = True

    def audit(self) -> tuple[str, ...]:
        """Faults of block conservation; none in health."""
        state = self._state
        return audit(
            state.pool,
            state.prefix,
            tables=[sequence.table for sequence in state.queues],
            leases={lease: sequence.table for lease, sequence in state.leases.items()},
        )

    def take_changed(self) -> bool:
        """True if something that `stats` tells has changed since the last call."""
        changed, self._state.changed = self._state.changed, False
        return changed

    def stats(self) -> CoreStats:
        """A consistent sample of load, blocks and counters."""
        state = self._state
        queues, counters = state.queues, state.counters
        return CoreStats(
            step=counters.step,
            running=len(queues.running),
            waiting=len(queues.waiting) + len(queues.pulling),
            waiting_tokens=sum(_uncomputed_prompt(sequence) for sequence in queues),
            context_tokens=sum(sequence.num_computed for sequence in queues.running),
            blocks=state.pool.counts(),
            leases=len(state.leases),
            tokens_recomputed=counters.tokens_recomputed,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            preemptions=counters.preemptions,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            encoder_runs=counters.encoder_runs,
            scheduler_s=counters.scheduler_s,
        )


def _uncomputed_prompt(sequence: Sequence) -> int:
    return max(0, sequence.request.num_prompt - sequence.num_computed)


def _count_lookup(state: CoreState, sequence: Sequence) -> None:
    """Count a request's first look into the prefix cache; later ones are its own preemptions."""
    if sequence.num_cached is None:
        sequence.num_cached = sequence.num_computed
        state.counters.prefix_queries += sequence.request.num_prompt
        state.counters.prefix_hits += sequence.num_computed
