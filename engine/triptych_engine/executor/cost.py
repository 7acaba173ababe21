"""The predicted time of a step: the profile evaluated over the rows of a plan.

A row that samples a later output position is one of the running sequences; every other row computes prompt
tokens, and is charged for its own context only.
"""

from triptych_contract.profile import StepProfile, step_seconds
from triptych_engine.executor.base import StepPlan


def plan_seconds(profile: StepProfile, plan: StepPlan) -> float:
    """Predicted seconds of one step."""
    running = context_tokens = 0
    seconds = 0.0
    for row in plan.rows:
        if row.sample is not None and row.sample.position > 0:
            running += 1
            context_tokens += row.first_position + 1
        else:
            new = len(row.token_ids)
            own_context = row.first_position + new // 2
            seconds += profile.prefill_token_s * new + profile.prefill_context_s * new * own_context
    return seconds + step_seconds(profile, prefill_tokens=0, running=running, context_tokens=context_tokens)
