"""A first step profile, measured in a second with a few steps on blocks nobody needs yet. Imports no torch."""

from collections.abc import Callable

from triptych_contract.profile import StepProfile
from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan

REPEATS = 3
"""The best of so many runs counts: other work on the machine only ever adds time."""


def decode_plan(*, rows: int, context_tokens: int, block_tokens: int) -> StepPlan:
    """One token for each of so many sequences, each with blocks of its own."""
    blocks = -(-(context_tokens + 1) // block_tokens)
    return StepPlan(tuple(_row(index, context_tokens, 1, index * blocks, blocks) for index in range(rows)))


def prefill_plan(*, tokens: int, context_tokens: int, block_tokens: int) -> StepPlan:
    """One chunk of a prompt behind a context."""
    blocks = -(-(context_tokens + tokens) // block_tokens)
    return StepPlan((_row(0, context_tokens, tokens, 0, blocks),))


def measure_profile(
    run: Callable[[StepPlan], object], *, now_s: Callable[[], float], block_tokens: int, max_context: int
) -> StepProfile:
    """Fit the profile's five coefficients to six steps, each coefficient from one difference.

    Args:
        run: Computes a plan over a scratch pool with blocks for 8 sequences of `scratch_context` tokens.
        now_s: A monotonic clock.
        block_tokens: Tokens a block.
        max_context: Longest sequence.
    """
    longest = scratch_context(max_context)
    chunk = longest // 4

    def best_s(plan: StepPlan) -> float:
        times = []
        for _ in range(REPEATS):
            started_s = now_s()
            run(plan)
            times.append(now_s() - started_s)
        return min(times)

    def decode_s(rows: int, context: int) -> float:
        return best_s(decode_plan(rows=rows, context_tokens=context, block_tokens=block_tokens))

    def prefill_s(tokens: int, context: int) -> float:
        return best_s(prefill_plan(tokens=tokens, context_tokens=context, block_tokens=block_tokens))

    one, eight, eight_far = decode_s(1, 1), decode_s(8, 1), decode_s(8, longest - 1)
    short, long, far = prefill_s(2, 0), prefill_s(chunk, 0), prefill_s(chunk, longest - chunk)
    prior = StepProfile()
    least = 1e-3  # of the prior: noise may make a difference vanish or turn its sign, a coefficient is never zero
    return StepProfile(
        base_s=one,
        prefill_token_s=max((long - short) / (chunk - 2), prior.prefill_token_s * least),
        prefill_context_s=max((far - long) / (chunk * (longest - chunk)), prior.prefill_context_s * least),
        sequence_s=max((eight - one) / 7, prior.sequence_s * least),
        context_token_s=max((eight_far - eight) / (8 * (longest - 2)), prior.context_token_s * least),
        error_ratio=0.5,
    )


def scratch_context(max_context: int) -> int:
    """Longest context that is measured."""
    return max(8, min(256, max_context))


def scratch_blocks(max_context: int, block_tokens: int) -> int:
    """Blocks that the measured steps use, from block 0 on."""
    return 8 * -(-scratch_context(max_context) // block_tokens)


def _row(sequence: int, first_position: int, count: int, first_block: int, blocks: int) -> PlanRow:
    return PlanRow(
        sequence=sequence,
        token_ids=[0] * count,
        first_position=first_position,
        block_table=range(first_block, first_block + blocks),
        stored_from=first_position,
        sample=SampleSpec(),
    )
