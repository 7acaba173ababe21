"""The result of the `sample` operation."""

from dataclasses import dataclass

from triptych_engine.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token, with its log-probabilities if they were asked for."""

    token_id: int
    logprobs: TokenLogprobs | None = None
