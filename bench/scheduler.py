"""Scheduler and batch build.

Time to decide one step while sequences decode, over several blocks of output, so that the allocation of blocks
is in it. The target, 150 µs at 32 sequences, is below 0.5 % of a step of a small model on a CPU.
"""

import time

from bench.report import Row
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.commit import commit
from triptych_engine.core.config import CoreConfig
from triptych_engine.core.engine import core_state
from triptych_engine.core.inbox import submit
from triptych_engine.core.state import CoreState
from triptych_engine.executor.base import Sampled
from triptych_engine.executor.sim import load_sim
from triptych_engine.messages import Submit
from triptych_engine.schedule.batch import batch

PROMPT_TOKENS = 160
STEPS = 400
TARGETS = {1: "", 8: "", 32: "≤ 150 µs", 256: ""}


def decide(state: CoreState) -> float:
    """Decide one step and commit made-up tokens; microseconds spent on deciding."""
    began_s = time.perf_counter()
    decided = batch(state.queues, state.pool, state.prefix, state.budget)
    spent_us = (time.perf_counter() - began_s) * 1e6
    results = [Sampled(row.sequence, 65) for row in decided.plan.rows if row.sample is not None]
    commit(state, decided, results)
    state.deltas.clear()
    return spent_us


def measure(num_sequences: int, *, steps: int = STEPS) -> list[float]:
    """Microseconds to decide each of `steps` steps of so many decoding sequences."""
    config = CoreConfig(kv_blocks=16_384, max_sequences=num_sequences, max_batch_tokens=2048)
    state = core_state(load_sim(config), config, lambda message: None)
    sampling = SamplingParams(max_tokens=10_000, temperature=0.8, top_p=0.9, seed=1)
    for number in range(num_sequences):
        prompt = [32 + (number * 7 + position) % 90 for position in range(PROMPT_TOKENS)]
        submit(state, Submit(id=str(number), token_ids=prompt, sampling=sampling))
    while state.queues.waiting or any(one.num_remaining > 1 for one in state.queues.running):
        decide(state)
    return [decide(state) for _ in range(steps)]


def run() -> list[Row]:
    """One row for each number of sequences."""
    return [
        Row(what=f"{count} sequences", samples=measure(count), unit="µs", target=target)
        for count, target in TARGETS.items()
    ]
