"""When things happened to one request, and what its histograms are told at its end; pure.

The times of admission and of tokens are the core's own, from the clock that both processes share, so queue,
prefill and decode time hold nothing of the server's work. A request with several prompts is told by the prompt
that gave the first token.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Times:
    """Monotonic times in seconds.

    Attributes:
        arrived_s: The request came.
        submitted_s: It was tokenised, and the core was asked.
        admitted_s: It got its blocks.
        first_s: First token; None before.
        last_s: Last token so far, by choice.
    """

    arrived_s: float
    submitted_s: float
    admitted_s: float = 0.0
    first_s: float | None = None
    last_s: dict[int, float] = field(default_factory=dict)

    def note(self, choice: int, at_s: float, admitted_s: float) -> float | None:
        """Tokens of a choice came; the gap since its last ones, None for the first."""
        if self.first_s is None:
            self.first_s, self.admitted_s = at_s, admitted_s
        before_s = self.last_s.get(choice)
        self.last_s[choice] = at_s
        return None if before_s is None else at_s - before_s

    def of_prefill(self, *, admitted_s: float, end_s: float) -> Iterator[tuple[str, float]]:
        """Values of a prefill leg, whose blocks have been put under their lease; it has no tokens."""
        yield "vllm:e2e_request_latency_seconds", end_s - self.arrived_s
        yield "vllm:request_queue_time_seconds", max(0.0, admitted_s - self.submitted_s)
        yield "vllm:request_prefill_time_seconds", end_s - admitted_s

    def observations(self, tokens: Mapping[int, int], *, end_s: float) -> Iterator[tuple[str, float]]:
        """Values for the histograms of a request that has come to its end.

        Args:
            tokens: Number of output tokens by choice.
            end_s: The last piece has been taken.
        """
        yield "vllm:e2e_request_latency_seconds", end_s - self.arrived_s
        if self.first_s is None:
            return
        yield "vllm:time_to_first_token_seconds", self.first_s - self.arrived_s
        yield "vllm:request_queue_time_seconds", max(0.0, self.admitted_s - self.submitted_s)
        yield "vllm:request_prefill_time_seconds", self.first_s - self.admitted_s
        yield "vllm:request_decode_time_seconds", max(self.last_s.values()) - self.first_s
        for choice, count in tokens.items():
            if count > 1 and choice in self.last_s:
                yield (
                    "vllm:request_time_per_output_token_seconds",
                    (self.last_s[choice] - self.first_s) / (count - 1),
                )
