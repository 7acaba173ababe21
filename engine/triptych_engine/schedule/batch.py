"""The scheduler: what the next step computes."""

from dataclasses import dataclass

from triptych_engine.core.request import Sequence
from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.kv.blocks import BlockPool
from triptych_engine.kv.prefix import PrefixCache
from triptych_engine.messages import Mode, PullWanted
from triptych_engine.schedule.admit import admit
from triptych_engine.schedule.budget import Budget
from triptych_engine.schedule.preempt import make_room
from triptych_engine.schedule.queues import Queues


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, decided.

    Attributes:
        plan: What the executor computes.
        sequences: The sequence of each row of the plan.
        admitted: Sequences that got their blocks in this step.
        pulls: Blocks that the server is asked to fetch.
        preempted: Sequences whose blocks were taken back.
        refused: Sequences that can never run.
    """

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...] = ()
    pulls: tuple[PullWanted, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    refused: tuple[Sequence, ...] = ()


def batch(queues: Queues, pool: BlockPool, prefix: PrefixCache, budget: Budget) -> Batch:
    """Decide the next step.

    There is no prefill phase and no decode phase. Each sequence has known tokens and computed tokens, and each
    step lets computed ones catch up: by one token where one is missing, by a chunk of the prompt where many
    are. Sequences that miss one token go first, so no prompt delays them by more than one step of at most
    `max_batch_tokens`; prompts share the rest in arrival order; new sequences are admitted with what is left.
    A victim of preemption is not admitted again in the same step: it needs all the blocks that it gave, and at
    least one of them has gone to somebody else.

    Moves sequences between the queues and blocks to their tables; does no input or output and reads no clock.
    """
    preempted = make_room(queues, pool, budget)
    sequences = [sequence for sequence in queues.running if sequence.num_remaining == 1]
    prompts = [sequence for sequence in queues.running if sequence.num_remaining > 1]
    rows = [_row(sequence, 1) for sequence in sequences]
    left = budget.max_batch_tokens - len(rows)
    wanted = sum(sequence.num_remaining for sequence in prompts)
    admissions = admit(queues, pool, prefix, budget, max_tokens=left - wanted)
    prompts += admissions.started
    for sequence in prompts:
        if left <= 0:
            break
        rows.append(_row(sequence, min(left, sequence.num_remaining)))
        sequences.append(sequence)
        left -= len(rows[-1].token_ids)
    return Batch(
        plan=StepPlan(tuple(rows)),
        sequences=tuple(sequences),
        admitted=tuple(admissions.reserved),
        pulls=tuple(admissions.pulls),
        preempted=tuple(preempted),
        refused=tuple(admissions.refused),
    )


def _row(sequence: Sequence, count: int) -> PlanRow:
    """The next `count` known tokens of a sequence; the last one is sampled after, unless nobody wants it."""
    first = sequence.num_computed
    submit = sequence.request.submit
    end = first + count
    samples = end == len(sequence.tokens) and submit.mode is not Mode.PREFILL
    embeddings = submit.embeddings
    if embeddings:
        embeddings = tuple(one for one in embeddings if one.first < end and first < one.first + one.count)
    return PlanRow(
        sequence=sequence.key,
        token_ids=sequence.tokens[first:end],
        first_position=first,
        block_table=sequence.table,
        stored_from=max(first, sequence.num_stored),
        sample=_sample(sequence) if samples else None,
        embeddings=embeddings,
    )


def _sample(sequence: Sequence) -> SampleSpec:
    """How the sequence's next token is chosen."""
    request = sequence.request
    sampling = request.submit.sampling
    position = sequence.num_output
    return SampleSpec(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        prompt_index=request.submit.prompt_index,
        choice=sequence.choice,
        position=position,
        logprobs=sampling.logprobs,
        banned=request.stop_ids_tuple if position < sampling.min_tokens else (),
    )
