"""Preemption: when blocks run out, the latest arrival gives its own back and computes again later.

Recompute only. The victim keeps its known tokens, so its text goes on as if nothing had happened, and its full
blocks stay in the prefix cache until somebody needs them. The earliest arrival is never taken from while
another one holds blocks, so something always gets to its end.
"""

from triptych_engine.core.request import Sequence, State
from triptych_engine.kv.blocks import BlockPool
from triptych_engine.schedule.budget import Budget
from triptych_engine.schedule.queues import Queues


def preempt(sequence: Sequence, queues: Queues, pool: BlockPool) -> None:
    """Take a running sequence's blocks back; it waits at its place in arrival order."""
    pool.release(sequence.table)
    sequence.table = []
    sequence.num_computed = sequence.num_stored = sequence.num_registered = 0
    queues.move(sequence, State.WAITING)


def make_room(queues: Queues, pool: BlockPool, budget: Budget) -> list[Sequence]:
    """Give every running sequence the blocks of its known tokens, preempting the latest arrivals if need be.

    Returns:
        The preempted sequences.
    """
    preempted: list[Sequence] = []
    for sequence in list(queues.running):
        missing = budget.blocks_for(len(sequence.tokens)) - len(sequence.table)
        if missing <= 0:
            continue
        while sequence.state is State.RUNNING and missing > pool.available:
            victim = queues.running[-1]
            preempt(victim, queues, pool)
            preempted.append(victim)
        if sequence.state is State.RUNNING:
            sequence.table += pool.allocate(missing)
    return preempted
