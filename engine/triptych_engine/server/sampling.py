"""Pure: what the client asked for, the model's own defaults and the context bound into `SamplingParams`."""

import msgspec

from triptych_contract.errors import BadRequest, ContextLengthExceeded
from triptych_contract.sampling import SamplingParams
from triptych_engine.server.parse import Options

COMPLETION_TOKENS = 16
"""Output bound of a completion that names none, as OpenAI has it; a chat answer may fill the context."""


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """Of the model (`generation_config.json`), used where the client says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    eos_token_ids: tuple[int, ...] = ()


def resolve_sampling(
    options: Options,
    defaults: Defaults,
    *,
    prompt_tokens: int,
    max_context: int,
    vocab_size: int,
    default_max_tokens: int | None,
    seed: int,
) -> SamplingParams:
    """Parameters of one prompt.

    Args:
        options: Of the client.
        defaults: Of the model.
        prompt_tokens: Length of the prompt.
        max_context: Longest prompt plus output.
        vocab_size: Number of token ids.
        default_max_tokens: Output bound if the client names none; None = what the context leaves.
        seed: If the client names none.

    Raises:
        ContextLengthExceeded: Prompt and wanted output do not fit.
        BadRequest: A token id that the model does not have, or an empty prompt.
    """
    if not prompt_tokens:
        raise BadRequest("The prompt must have at least one token.", param="prompt")
    room = max_context - prompt_tokens
    wanted = options.max_tokens
    if room < max(1, wanted or 0):
        raise ContextLengthExceeded(
            f"The model takes {max_context} tokens of prompt and output; this prompt has {prompt_tokens}"
            + (f" and asks for {wanted} more." if wanted else ", which leaves no room for an answer.")
        )
    if any(token >= vocab_size for token in options.stop_token_ids):
        raise BadRequest("stop_token_ids has an id that the model does not have.", param="stop_token_ids")
    if wanted is None:
        wanted = room if default_max_tokens is None else min(room, default_max_tokens)
    if options.min_tokens > wanted:
        raise BadRequest("min_tokens must not be greater than max_tokens.", param="min_tokens")
    return SamplingParams(
        temperature=_first(options.temperature, defaults.temperature),
        top_p=_first(options.top_p, defaults.top_p),
        top_k=max(0, int(_first(options.top_k, defaults.top_k))),
        min_p=_first(options.min_p, defaults.min_p),
        seed=seed if options.seed is None else options.seed,
        n=options.n,
        max_tokens=wanted,
        min_tokens=options.min_tokens,
        stop=options.stop,
        stop_token_ids=options.stop_token_ids,
        ignore_eos=options.ignore_eos,
        logprobs=options.logprobs,
    )


def _first(wanted: float | None, default: float) -> float:
    return default if wanted is None else wanted
