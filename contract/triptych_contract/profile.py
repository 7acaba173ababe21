"""The step profile: how long an engine step takes. Evaluation only; engines fit the coefficients.

    step_s = a + b·prefill + c·prefill·context + d·running + e·context        (prefill, context in tokens)

`context` is the number of KV tokens that the step's rows attend to, summed over rows for decode.
"""

import msgspec


class StepProfile(msgspec.Struct, frozen=True):
    """Coefficients in seconds; the defaults are the documented prior, never zero.

    Attributes:
        base_s: a, a step's fixed cost.
        prefill_token_s: b, for each prompt token computed.
        prefill_context_s: c, for each prompt token times context token.
        sequence_s: d, for each running sequence.
        context_token_s: e, for each context token of the running sequences.
        error_ratio: The fit's own median relative error; 1 for a prior.
    """

    base_s: float = 0.004
    prefill_token_s: float = 0.000_2
    prefill_context_s: float = 5e-9
    sequence_s: float = 0.000_5
    context_token_s: float = 5e-7
    error_ratio: float = 1.0


def step_seconds(profile: StepProfile, *, prefill_tokens: int, running: int, context_tokens: int) -> float:
    """Predicted seconds of one step."""
    return (
        profile.base_s
        + profile.prefill_token_s * prefill_tokens
        + profile.prefill_context_s * prefill_tokens * context_tokens
        + profile.sequence_s * running
        + profile.context_token_s * context_tokens
    )


def prefill_seconds(profile: StepProfile, prompt_tokens: int, cached_tokens: int = 0) -> float:
    """Predicted seconds to compute a prompt of which the first part is cached.

    The mean context of the computed tokens is `cached + new / 2`.
    """
    new = max(1, prompt_tokens - cached_tokens)
    return step_seconds(profile, prefill_tokens=new, running=0, context_tokens=cached_tokens + new // 2)


def decode_step_seconds(profile: StepProfile, running: int, context_tokens: int) -> float:
    """Predicted seconds of a step that decodes `running` sequences over `context_tokens` in all."""
    return step_seconds(profile, prefill_tokens=0, running=running, context_tokens=context_tokens)
