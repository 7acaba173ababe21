"""Counters of the core since its start."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Each only grows.

    Attributes:
        step: Steps finished.
        tokens_recomputed: Prompt tokens computed for requests whose prompt was computed elsewhere.
        prefix_queries: Prompt tokens looked up in the prefix cache.
        prefix_hits: Prompt tokens found there.
        preemptions: Sequences whose blocks were taken back.
        prompt_tokens: Prompt tokens computed.
        generation_tokens: Tokens sampled.
        encoder_runs: Images embedded.
        scheduler_s: Seconds spent on deciding steps.
    """

    step: int = 0
    tokens_recomputed: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    encoder_runs: int = 0
    scheduler_s: float = 0.0
