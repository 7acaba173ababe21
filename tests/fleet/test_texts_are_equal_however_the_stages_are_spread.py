"""The same requests through E→P→D, P→D and one mixed instance give the same text."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fakes.asking import ask, image_part, png
from fakes.fleet import Fleet, fleet_in

pytestmark = pytest.mark.process

LONG = " ".join(f"word{i}" for i in range(60))


def chat(content: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    """A chat request."""
    return "/v1/chat/completions", {"model": "sim", "messages": [{"role": "user", "content": content}], **more}


def texts() -> list[tuple[str, dict[str, Any]]]:
    """Greedy, seeded, stopped, streamed, long and short text requests."""
    plain: dict[str, Any] = {"model": "sim", "prompt": LONG, "max_tokens": 40, "ignore_eos": True}
    return [
        ("/v1/completions", {**plain, "temperature": 0}),
        ("/v1/completions", {**plain, "temperature": 0, "stream": True}),
        ("/v1/completions", {**plain, "temperature": 0.9, "seed": 7, "top_p": 0.8}),
        ("/v1/completions", {**plain, "temperature": 0.9, "seed": 8, "top_k": 5, "stream": True}),
        ("/v1/completions", {**plain, "prompt": "short", "temperature": 0}),
        chat(LONG, temperature=0, max_tokens=50),
        chat(LONG + " again", temperature=1.0, seed=-1, max_tokens=50, stream=True),
    ]


def pictures() -> list[tuple[str, dict[str, Any]]]:
    """Requests with one and two images."""
    one = [{"type": "text", "text": LONG}, image_part(png(shade=9))]
    two = [image_part(png(shade=9)), {"type": "text", "text": "and"}, image_part(png(shade=77))]
    more: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}
    return [chat(one, **more), chat(two, **more), chat(two, **more, stream=True)]


async def answers(fleet: Fleet, requests: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Texts of all requests, asked at once."""
    got = await asyncio.gather(*(ask(fleet.http, fleet.router.url, body, path=path) for path, body in requests))
    for answer in got:
        assert (answer.status, answer.error, answer.done) == (200, None, True), answer
        assert answer.finish_reason is not None
    return [answer.text for answer in got]


async def start(directory: Path, fleet: Fleet, roles: list[str]) -> None:
    """Engines in these roles and a router."""
    await asyncio.gather(*(fleet.start_engine(f"{role}-{i}", role) for i, role in enumerate(roles)))
    await fleet.start_router()


async def test_three_stages_on_three_processes_give_the_text_of_one_process(tmp_path: Path) -> None:
    """Also: the decode instance computed one prompt token a request, and the images were embedded once each."""
    requests = texts() + pictures()
    spread: dict[str, list[str]] = {}
    for name, roles in {"mixed": ["all"], "epd": ["encode", "prefill", "decode"]}.items():
        (tmp_path / name).mkdir()
        async with fleet_in(tmp_path / name) as fleet:
            await start(tmp_path / name, fleet, roles)
            spread[name] = await answers(fleet, requests)
            states = await fleet.settled()
            if name == "epd":
                handed = states["decode-2"].load.handover
                assert handed.requests > 0
                assert handed.tokens_recomputed == handed.requests
                assert handed.blocks_received > 0
                assert states["prefill-1"].load.handover.blocks_sent == handed.blocks_received
                assert states["encode-0"].load.handover.encoder_runs == 2
                assert states["prefill-1"].load.handover.encoder_runs == 0
                assert states["prefill-1"].load.handover.embeddings_received > 0
                spread["again"] = await answers(fleet, requests)
                states = await fleet.settled()
                assert states["encode-0"].load.handover.encoder_runs == 2
    assert spread["epd"] == spread["mixed"]
    assert spread["again"] == spread["mixed"]
    assert len(set(spread["mixed"])) >= len(requests) - 2, "requests that differ have texts that differ"


async def test_prefill_and_decode_pools_give_the_text_of_mixed_instances(tmp_path: Path) -> None:
    """Two prefill and two decode instances against two mixed ones."""
    spread: dict[str, list[str]] = {}
    for name, roles in {"mixed": ["mixed"] * 2, "pd": ["prefill", "prefill", "decode", "decode"]}.items():
        (tmp_path / name).mkdir()
        async with fleet_in(tmp_path / name) as fleet:
            await start(tmp_path / name, fleet, roles)
            spread[name] = await answers(fleet, texts())
            await fleet.settled()
    assert spread["pd"] == spread["mixed"]
