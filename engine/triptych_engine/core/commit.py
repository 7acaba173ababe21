"""After a step: computed positions advance, sampled tokens become known, sequences fork, lease or finish."""

from collections.abc import Sequence as Series

from triptych_engine.core.request import Sequence, State
from triptych_engine.core.state import CoreState
from triptych_engine.executor.base import PlanRow, Sampled
from triptych_engine.messages import Delta, FinishReason, LeaseGranted, Mode
from triptych_engine.schedule.batch import Batch


class BadResults(RuntimeError):
    """The executor did not return one token for each row that samples."""


def check_results(decided: Batch, results: Series[Sampled]) -> None:
    """Raise `BadResults` unless the results are those of the plan's rows, in order."""
    wanted = [row.sequence for row in decided.plan.rows if row.sample is not None]
    if [one.sequence for one in results] != wanted:
        raise BadResults(f"{len(wanted)} tokens wanted, {len(results)} returned or out of order")


def commit(state: CoreState, decided: Batch, results: Series[Sampled]) -> None:
    """Take the results of a step in; they were checked."""
    state.changed = True
    sampled = iter(results)
    for row, sequence in zip(decided.plan.rows, decided.sequences, strict=True):
        _advance(state, sequence, row)
        if row.sample is not None:
            _fork(state, sequence)
            _accept(state, sequence, next(sampled))
        elif sequence.request.submit.mode is Mode.PREFILL and sequence.num_remaining == 0:
            _grant(state, sequence)


def _advance(state: CoreState, sequence: Sequence, row: PlanRow) -> None:
    """The row's positions are computed."""
    end = row.first_position + len(row.token_ids)
    sequence.num_computed = end
    sequence.num_stored = max(end, sequence.num_stored)
    request = sequence.request
    computed = min(end, request.num_prompt) - row.first_position
    if computed > 0 and not sequence.is_fork:
        state.counters.prompt_tokens += computed
        if request.submit.mode is Mode.PULL:
            state.counters.tokens_recomputed += computed
    state.register(sequence)


def _accept(state: CoreState, sequence: Sequence, sampled: Sampled) -> None:
    """A token is known; perhaps it is the last one."""
    request = sequence.request
    position = sequence.num_output
    sequence.tokens.append(sampled.token_id)
    state.counters.generation_tokens += 1
    reason = _finish_reason(state, sequence, sampled.token_id)
    state.deltas.append(
        Delta(
            id=request.submit.id,
            choice=sequence.choice,
            first_position=position,
            token_ids=(sampled.token_id,),
            finish_reason=reason,
            logprobs=(sampled.logprobs,) if sampled.logprobs is not None else (),
            cached_tokens=(sequence.num_cached or 0) if position == 0 else 0,
            admitted_s=request.admitted_s if position == 0 else 0.0,
        )
    )
    if reason is not None:
        request.open_choices.discard(sequence.choice)
        state.end_sequence(sequence)


def _finish_reason(state: CoreState, sequence: Sequence, token_id: int) -> FinishReason | None:
    request = sequence.request
    sampling = request.submit.sampling
    if token_id in request.stop_ids and sequence.num_output > sampling.min_tokens:
        return FinishReason.STOP
    if sequence.num_output >= sampling.max_tokens or len(sequence.tokens) >= state.limits.max_context:
        return FinishReason.LENGTH
    return None


def _grant(state: CoreState, sequence: Sequence) -> None:
    """A prefill leg is computed: its blocks go from the request to the lease."""
    submit = sequence.request.submit
    state.executor.export_blocks(sequence.table)
    state.pool.lease(sequence.table)
    state.pool.release(sequence.table)
    state.queues.move(sequence, State.LEASED)
    state.leases[submit.lease] = sequence
    state.send(
        LeaseGranted(
            id=submit.id,
            lease=submit.lease,
            blocks=tuple(sequence.table),
            identities=tuple(sequence.hashes[: len(sequence.tokens) // state.budget.block_tokens]),
            num_tokens=len(sequence.tokens),
            cached_tokens=sequence.num_cached or 0,
            admitted_s=sequence.request.admitted_s,
        )
    )
    state.forget(sequence)


def _fork(state: CoreState, carrier: Sequence) -> None:
    """The prompt is computed: every other open choice gets a sequence.

    A fork shares the prompt's full blocks and copies its tail, then computes the last prompt position again
    for its own first token. Without room for that it waits like any new sequence, and computes what the
    prefix cache does not have by then.
    """
    request = carrier.request
    if request.forked:
        return
    request.forked = True
    copies: list[tuple[int, int]] = []
    for choice in sorted(request.open_choices - {carrier.choice}):
        fork = state.sequence(request, choice=choice)
        fork.is_fork = True
        fork.num_cached = carrier.num_cached
        state.queues.enqueue(fork)
        copies += _share_prompt(state, carrier, fork)
    if copies:
        state.executor.copy_blocks(copies)


def _share_prompt(state: CoreState, carrier: Sequence, fork: Sequence) -> list[tuple[int, int]]:
    """Give a fork the prompt's KV and set it running, if there is room; the blocks to copy."""
    num_full, tail = divmod(carrier.request.num_prompt, state.budget.block_tokens)
    num_private = 1 if tail else 0
    if state.queues.num_active >= state.budget.sequences or num_private > state.pool.available:
        return []
    shared = carrier.table[:num_full]
    state.pool.share(shared)
    private = state.pool.allocate(num_private)
    fork.table = shared + private
    fork.hashes = carrier.hashes[:num_full]
    fork.num_stored = carrier.request.num_prompt
    fork.num_computed = fork.num_stored - 1
    fork.num_registered = num_full
    state.queues.move(fork, State.RUNNING)
    return [(carrier.table[num_full], block) for block in private]
