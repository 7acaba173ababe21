"""Engine step and time to first token beside transformers, Qwen3-0.6B shape, random bfloat16 weights.

Both run in this process on the same threads, turn by turn, so that a change of the machine's pace meets both. A step of
ours is a whole one: batch build, forward, greedy sampling. That of transformers is a cached forward and a maximum.
Decode steps are taken with the compiled CPU kernels and without them; the first-token rows never use them. The folder
of weights (1.2 GB) and the kernels are written to a temporary directory.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import Row
from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.executor.torch import TorchExecutor, load_torch
from triptych_engine.kernels import build

BLOCK = 32
RUNS = 5
MAX_CONTEXT = 1280
PROMPTS = (128, 1024)
"""Prompt lengths of the first-token rows."""
BATCHES = (1, 8, 32)
"""Sequences of the decode rows, each with a context of 128."""
CONTEXT = 128
CHUNK = 512
"""Tokens of one chunk, as the engine's default `--max-batch-tokens`."""
TARGETS = {"first": "1.5 times faster", 1: "2 times faster", 8: "3 times faster", 32: "3.5 times faster"}


def run() -> list[Row]:
    """Milliseconds of both, and how many times faster ours is, from interleaved runs."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as folder:
        model = _reference(Path(folder))
        os.environ["XDG_CACHE_HOME"] = folder
        build(os.environ)
        fast, plain = _engine(Path(folder), "auto"), _engine(Path(folder), "off")
    rows: list[Row] = []
    for tokens in PROMPTS:
        calls = {"": _first_token(plain, tokens)}
        rows += _compare(
            f"first token, {tokens} prompt tokens", calls, _reference_first_token(model, tokens), TARGETS["first"]
        )
    for batch in BATCHES:
        calls = {", with kernels": _decode(fast, batch), ", without kernels": _decode(plain, batch)}
        rows += _compare(
            f"decode step, batch {batch}, context {CONTEXT}", calls, _reference_decode(model, batch), TARGETS[batch]
        )
    return rows


def _compare(what: str, ours: dict[str, Callable[[], object]], theirs: Callable[[], object], target: str) -> list[Row]:
    """Rows of each of ours and of theirs; the target is that of the first of ours."""
    calls = [*ours.values(), theirs]
    for call in calls:
        call()
    turns = [[_time_ms(call) for call in calls] for _ in range(RUNS)]
    *mine, other = (list(times) for times in zip(*turns, strict=True))
    rows = [Row(f"{what}, transformers", other, "ms")]
    for (name, times), goal in zip(zip(ours, mine, strict=True), [target, *[""] * len(ours)], strict=False):
        ratios = [slow / fast for fast, slow in zip(times, other, strict=True)]
        rows += [Row(f"{what}{name}", times, "ms"), Row(f"{what}{name}, ratio", ratios, "times faster", goal)]
    return rows


def _time_ms(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1000


def _reference(folder: Path) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.save_pretrained(folder)
    return model


def _engine(folder: Path, kernels: str) -> TorchExecutor:
    executor = load_torch(
        model_dir=folder,
        dtype="bfloat16",
        device="cpu",
        threads=os.cpu_count() or 1,
        kv_blocks=1 + max(max(BATCHES) * -(-(CONTEXT + 1) // BLOCK), -(-MAX_CONTEXT // BLOCK)),
        kv_memory_bytes=0,
        max_context=MAX_CONTEXT,
        progress=lambda percent, text: None,
        kernels=kernels,
    )
    executor.bind(memoryview(bytearray(executor.info.layout.pool_bytes)))
    return executor


def _prompt(tokens: int) -> list[int]:
    return [17 + 31 * position % 150_000 for position in range(tokens)]


def _row(sequence: int, token_ids: Sequence[int], first: int, *, samples: bool) -> PlanRow:
    blocks = -(-(first + len(token_ids)) // BLOCK)
    table = range(1 + sequence * blocks, 1 + (sequence + 1) * blocks)
    return PlanRow(sequence, token_ids, first, table, first, SampleSpec() if samples else None)


def _first_token(executor: TorchExecutor, tokens: int) -> Callable[[], object]:
    prompt = _prompt(tokens)

    def call() -> None:
        for first in range(0, tokens, CHUNK):
            chunk = prompt[first : first + CHUNK]
            executor.execute(StepPlan((_row(0, chunk, first, samples=first + CHUNK >= tokens),)))

    return call


def _decode(executor: TorchExecutor, batch: int) -> Callable[[], object]:
    plan = StepPlan(tuple(_row(sequence, [7], CONTEXT, samples=True) for sequence in range(batch)))
    return lambda: executor.execute(plan)


def _reference_first_token(model: Any, tokens: int) -> Callable[[], object]:
    import torch

    inputs = torch.tensor([_prompt(tokens)])

    def call() -> object:
        with torch.inference_mode():
            return model(inputs, use_cache=True, logits_to_keep=1).logits[:, -1].max(-1)

    return call


def _reference_decode(model: Any, batch: int) -> Callable[[], object]:
    import torch

    with torch.inference_mode():
        cache = model(torch.tensor([_prompt(CONTEXT)] * batch), use_cache=True, logits_to_keep=1).past_key_values
    inputs = torch.full((batch, 1), 7)

    def call() -> object:
        with torch.inference_mode():
            chosen = model(inputs, past_key_values=cache, use_cache=True).logits[:, -1].max(-1)
        cache.crop(-1)
        return chosen

    return call


def main() -> None:
    """Print the rows."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for row in run():
        print(f"{row.what}: median {statistics.median(row.samples):.1f} {row.unit}  {row.target}", flush=True)


if __name__ == "__main__":
    main()
