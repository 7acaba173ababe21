"""Two processes of the PyTorch engine and a router say what transformers says, in float64, token by token.

Prompts are token ids and answers are compared as token ids, so nothing but the model and the hand-over is in play.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.fleet import Fleet
from fakes.oracle_models import VOCABULARY, make_oracle, oracle_greedy, prompt, save_oracle

pytestmark = [pytest.mark.process, pytest.mark.torch]

OUTPUT_TOKENS = 24
LENGTHS = (33, 64, 100, 129)
"""A tail of one token, whole blocks only, a long tail, and one token into the fifth block."""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Any], Path]:
    """Saves a model beside a tokenizer of one word a token."""

    def save(model: Any) -> Path:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        target = save_oracle(model, tmp_path / "model")
        words = {f"t{i}": i for i in range(VOCABULARY)}
        Tokenizer(WordLevel(words, unk_token="t2")).save(str(target / "tokenizer.json"))
        return target

    return save


async def completion(fleet: Fleet, token_ids: list[int]) -> tuple[list[int], dict[str, str]]:
    """Greedy token ids through the router, and who served them."""
    body = {
        "model": "oracle",
        "prompt": token_ids,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    async with fleet.http.post(f"{fleet.router.url}/v1/completions", json=body) as answer:
        said = await answer.json()
        assert answer.status == 200, said
        return said["choices"][0]["token_ids"], dict(answer.headers)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama3-rope"])
async def test_tokens_through_the_hand_over_equal_transformers(
    fleet: Fleet, folder: Callable[[Any], Path], kind: str
) -> None:
    """Also: one prompt token computed a decode leg, and the blocks of all prompts received."""
    oracle = make_oracle(kind).double()
    flags = ("--model", str(folder(oracle)), "--served-name", "oracle", "--dtype", "float64", "--threads", "1")
    roles = ("prefill", "decode")
    await asyncio.gather(*(fleet.start_engine(role, role, *flags, "--kv-blocks", "64") for role in roles))
    await fleet.start_router("--handover-min-tokens", "0")
    prompts = [prompt(seed, tokens) for seed, tokens in enumerate(LENGTHS)]

    answers = await asyncio.gather(*(completion(fleet, one) for one in prompts))

    for token_ids, (said, headers) in zip(prompts, answers, strict=True):
        assert said == oracle_greedy(oracle, token_ids, OUTPUT_TOKENS)[0]
        assert headers["x-triptych-served-by"] == "prefill=prefill, decode=decode"
    handed = (await fleet.settled())["decode"].load.handover
    assert handed.tokens_recomputed == len(prompts)
    assert handed.blocks_received == sum(-(-tokens // 32) for tokens in LENGTHS)
