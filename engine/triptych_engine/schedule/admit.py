"""Admission: a waiting sequence gets all blocks of its known tokens at once, or it waits.

Order is arrival order, and a sequence that finds too few blocks stops all behind it, so nothing is starved by
smaller ones that keep coming. The one exception is a prefill leg that has to wait for leases: those behind it
may be the very decode legs by which leases end somewhere, so they go past.
"""

from dataclasses import dataclass, field

from triptych_engine.core.request import Sequence, State, lacks_embeddings
from triptych_engine.kv.blocks import BlockPool
from triptych_engine.kv.prefix import PrefixCache
from triptych_engine.messages import Mode, PullBlock, PullWanted
from triptych_engine.schedule.budget import Budget
from triptych_engine.schedule.queues import Queues


@dataclass(slots=True)
class Admissions:
    """What admission did in one step.

    Attributes:
        reserved: Sequences that got their blocks.
        started: Those of them that run now and may compute in this step.
        pulls: Asked of the server.
        refused: Sequences that can never run, because their images were computed elsewhere and are gone.
    """

    reserved: list[Sequence] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    pulls: list[PullWanted] = field(default_factory=list)
    refused: list[Sequence] = field(default_factory=list)


def admit(queues: Queues, pool: BlockPool, prefix: PrefixCache, budget: Budget, *, max_tokens: int) -> Admissions:
    """Admit waiting sequences in arrival order while blocks, sequences and `max_tokens` of this step last."""
    admissions = Admissions()
    for sequence in list(queues.waiting):
        # A pull computes nothing in this step, so it may start when no tokens are left.
        if queues.num_active >= budget.sequences or (max_tokens <= 0 and not sequence.wants_pull):
            break
        if _waits_for_leases(sequence, queues, pool, budget):
            continue
        if not _reserve(sequence, pool, prefix, budget):
            break
        admissions.reserved.append(sequence)
        max_tokens -= _start(sequence, queues, budget, admissions)
    return admissions


def _waits_for_leases(sequence: Sequence, queues: Queues, pool: BlockPool, budget: Budget) -> bool:
    """True for a prefill leg that would take leases above their share; one alone may pass it."""
    if sequence.request.submit.mode is not Mode.PREFILL:
        return False
    promised = sum(len(one.table) for one in queues.running if one.request.submit.mode is Mode.PREFILL)
    taken = pool.in_transfer + promised
    return taken > 0 and taken + budget.blocks_for(len(sequence.tokens)) > budget.max_lease_blocks


def _reserve(sequence: Sequence, pool: BlockPool, prefix: PrefixCache, budget: Budget) -> bool:
    """Fill the sequence's table from the prefix cache and the pool; False if blocks are short."""
    num_known = len(sequence.tokens)
    chain = sequence.chain(num_known // budget.block_tokens, block_tokens=budget.block_tokens)
    matched = prefix.match(chain, root=sequence.request.submit.chain_root)
    missing = budget.blocks_for(num_known) - len(matched)
    # Idle blocks that are matched leave the available ones as soon as they are shared.
    if missing + sum(prefix.is_idle(block) for block in matched) > pool.available:
        return False
    pool.share(matched)
    sequence.table = matched + pool.allocate(missing)
    settle(sequence, stored_blocks=len(matched), block_tokens=budget.block_tokens)
    return True


def settle(sequence: Sequence, *, stored_blocks: int, block_tokens: int) -> None:
    """The first `stored_blocks` blocks of the table hold KV; the last known position is always computed."""
    sequence.num_stored = min(stored_blocks * block_tokens, len(sequence.tokens))
    sequence.num_computed = min(sequence.num_stored, len(sequence.tokens) - 1)
    sequence.num_registered = sequence.num_stored // block_tokens


def _start(sequence: Sequence, queues: Queues, budget: Budget, admissions: Admissions) -> int:
    """Set a sequence with blocks going; the tokens of this step that it wants."""
    if sequence.wants_pull:
        sequence.wants_pull = False
        wanted = _wanted(sequence, budget)
        admissions.pulls.append(wanted)
        if wanted.blocks:
            queues.move(sequence, State.PULLING)
            return 0
    queues.move(sequence, State.RUNNING)
    if lacks_embeddings(sequence.request.submit, first=sequence.num_computed):
        admissions.refused.append(sequence)
        return 0
    admissions.started.append(sequence)
    return sequence.num_remaining


def _wanted(sequence: Sequence, budget: Budget) -> PullWanted:
    """The blocks of a prompt that were not found here, with the valid tokens of each."""
    submit = sequence.request.submit
    width = budget.block_tokens
    blocks: list[PullBlock] = []
    if submit.remote_num_tokens == len(submit.token_ids):
        for index in range(sequence.num_registered, len(sequence.table)):
            valid = min(width, len(submit.token_ids) - index * width)
            identity = sequence.hashes[index] if valid == width else b""
            blocks.append(PullBlock(index=index, block=sequence.table[index], identity=identity, tokens=valid))
    return PullWanted(id=submit.id, lease=submit.lease, blocks=tuple(blocks))
