"""What is refused at the door: requests that could never be served, and those above a bounded queue.

Everything is checked before any work is done for the request, and against the client's own limits.
"""

from dataclasses import dataclass

from triptych_contract.errors import BadRequest, ContextLengthExceeded, Overloaded, TriptychError
from triptych_contract.profile import StepProfile
from triptych_engine.messages import Mode, Submit

MIN_RETRY_MS = 1000
MAX_RETRY_MS = 30_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request.

    Attributes:
        max_context: Longest prompt plus output in tokens; no longer than the whole KV pool.
        max_waiting: Requests that may wait.
        vocab_size: Token ids are below it.
    """

    max_context: int
    max_waiting: int
    vocab_size: int


def refuse(
    submit: Submit, limits: Limits, *, num_waiting: int, waiting_tokens: int, profile: StepProfile
) -> TriptychError | None:
    """Why this request is not taken; None if it is."""
    num_prompt = len(submit.token_ids)
    if num_prompt == 0:
        return BadRequest("The prompt is empty.", param="prompt")
    if min(submit.token_ids) < 0 or max(submit.token_ids) >= limits.vocab_size:
        return BadRequest("The prompt has a token id that the model does not know.", param="prompt")
    if num_prompt + 1 > limits.max_context:
        return ContextLengthExceeded(
            f"The prompt has {num_prompt} tokens; prompt and output may have {limits.max_context} together.",
            param="prompt",
        )
    if submit.mode is Mode.PREFILL and not submit.lease:
        return BadRequest("A prefill leg needs a lease.")
    if num_waiting >= limits.max_waiting:
        seconds = profile.prefill_token_s * waiting_tokens
        retry_after_ms = min(MAX_RETRY_MS, max(MIN_RETRY_MS, round(seconds * 1000)))
        return Overloaded("Too many requests wait here.", retry_after_ms=retry_after_ms)
    return None
