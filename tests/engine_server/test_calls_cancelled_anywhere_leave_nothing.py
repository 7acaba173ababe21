"""A call is cancelled at each turn of the event loop, from its first byte to its last, one turn after another.

Whatever it was waiting for (its body, the core, blocks or embeddings of another instance, a slow client), both
instances return to rest: no block, no lease, no open call, no task.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from fakes.asking import image_part, png
from fakes.live_engine import LiveEngine, live_engine
from triptych_contract.errors import NotReady
from triptych_contract.registry import MemoryRegistry
from triptych_contract.roles import PhaseEvent
from triptych_engine.server.openai import chat_completions, completions

MAX_TURNS = 3000
REST_DEADLINE_S = 2.0
"""Shorter than the interval of renewals, so that one which goes on is found."""
PROMPT = "many words to fill some blocks of tokens, and one more " * 2
TEXT: dict[str, Any] = {"model": "sim", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
LEG: dict[str, Any] = {"kv_transfer_params": {"do_remote_decode": True}}


def picture(shade: int, **more: Any) -> dict[str, Any]:
    """A chat with an image that no other call has."""
    content = [{"type": "text", "text": PROMPT}, image_part(png(shade=shade % 256, width=2 + shade // 256))]
    return {"model": "sim", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}


@pytest.fixture
async def pair() -> AsyncIterator[tuple[LiveEngine, LiveEngine]]:
    registry = MemoryRegistry()
    async with live_engine("p", registry) as producer, live_engine("d", registry) as consumer:
        yield producer, consumer


def begin(at: LiveEngine, body: dict[str, Any]) -> "asyncio.Task[Any]":
    chat = "messages" in body
    path = "/v1/chat/completions" if chat else "/v1/completions"
    request = at.request(path, json.dumps(body).encode())
    return asyncio.create_task((chat_completions if chat else completions)(request), name="call")


async def finished(at: LiveEngine, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of a call that nobody cancels."""
    answer = await begin(at, body)
    return msgspec.json.decode(answer.body)  # type: ignore[no-any-return]


def tasks() -> set[str]:
    """Names of tasks, but those of links that wait for their next use, and of what always runs."""
    kept = {"kv-link", "kv-link-accept", "lease-expiry", "core"}
    return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()} - kept


async def rest(*engines: LiveEngine) -> None:
    """Wait until nothing is held anywhere; far sooner than a lease ends by itself."""
    try:
        async with asyncio.timeout(REST_DEADLINE_S):
            while any(one.held for one in engines) or tasks():  # noqa: ASYNC110 - rest has no event
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"still held: {[one.held for one in engines]}, tasks {tasks()}") from None


async def cancelled_after(turns: int, call: "asyncio.Task[Any]") -> bool:
    """Cancel a call after so many turns of the event loop; False if it has ended before."""
    for _ in range(turns):
        if call.done():
            break
        await asyncio.sleep(0)
    ended = call.done()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    if ended:
        assert call.exception() is None
    return not ended


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(TEXT, id="whole"),
        pytest.param({**TEXT, "stream": True, "n": 2}, id="stream"),
        pytest.param({**TEXT, "prompt": ["one", "two", "three"], "n": 2}, id="several prompts"),
        pytest.param({**TEXT, "stop": ["e"], "n": 3, "stream": True}, id="stop strings"),
        pytest.param({**TEXT, "max_tokens": 0, "echo": True}, id="echo"),
    ],
)
async def test_a_call_for_text(pair: tuple[LiveEngine, LiveEngine], body: dict[str, Any]) -> None:
    _, at = pair
    turns = 0
    while await cancelled_after(turns, begin(at, body)):
        await rest(at)
        turns += 1
        assert turns < MAX_TURNS
    await rest(at)
    assert turns > 3


async def test_a_prefill_leg(pair: tuple[LiveEngine, LiveEngine]) -> None:
    producer, _ = pair
    turns = 0
    while await cancelled_after(turns, begin(producer, {**TEXT, **LEG})):
        await rest(producer)
        turns += 1
        assert turns < MAX_TURNS
    assert producer.engine.handover.leases == 1
    assert turns > 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_leg(pair: tuple[LiveEngine, LiveEngine], stream: bool) -> None:
    """Cancelled before, while and after it pulls: the router releases a lease whose blocks were not taken."""
    producer, consumer = pair
    turns, more = 0, True
    while more:
        body = {**TEXT, "prompt": f"{turns} {PROMPT}"}
        ticket = (await finished(producer, {**body, **LEG}))["kv_transfer_params"]
        call = begin(consumer, {**body, "stream": stream, "kv_transfer_params": ticket})
        more = await cancelled_after(turns, call)
        producer.engine.handover.release(ticket["lease"])
        await rest(producer, consumer)
        turns += 1
        assert turns < MAX_TURNS
    assert consumer.engine.handover.counts().blocks_received > 0
    assert consumer.engine.stats.tokens_recomputed > 0


async def test_an_encode_leg(pair: tuple[LiveEngine, LiveEngine]) -> None:
    producer, _ = pair
    turns = 0
    while await cancelled_after(turns, begin(producer, picture(turns, triptych={"encode": True}))):
        await rest(producer)
        turns += 1
        assert turns < MAX_TURNS
    assert producer.engine.handover.leases == 1


async def test_a_prefill_leg_that_fetches_its_embeddings(pair: tuple[LiveEngine, LiveEngine]) -> None:
    producer, consumer = pair
    turns, more = 0, True
    while more:
        encoded = await finished(producer, picture(turns, triptych={"encode": True}))
        embeddings = encoded["triptych"]["embeddings"]
        leg = {"kv_transfer_params": {"do_remote_decode": True, "embeddings": embeddings}}
        more = await cancelled_after(turns, begin(consumer, picture(turns, **leg)))
        producer.engine.handover.release(embeddings["lease"])
        if more:
            await rest(producer, consumer)
        turns += 1
        assert turns < MAX_TURNS
    assert consumer.engine.handover.leases == 1


async def test_a_decode_leg_that_meets_the_end_of_the_program() -> None:
    """The program closes the table at each turn of a hand-over: one end, and nothing is left."""
    registry = MemoryRegistry()
    async with live_engine("p", registry) as producer:
        turns, ended = 0, False
        while not ended:
            async with live_engine("d", registry) as consumer:
                body = {**TEXT, "prompt": f"{turns} {PROMPT}"}
                ticket = (await finished(producer, {**body, **LEG}))["kv_transfer_params"]
                call = begin(consumer, {**body, "kv_transfer_params": ticket})
                for _ in range(turns):
                    await asyncio.sleep(0)
                ended = call.done()
                consumer.engine.role.apply(PhaseEvent.DRAIN)
                consumer.engine.table.close(NotReady("This instance is shutting down."))
                async with asyncio.timeout(REST_DEADLINE_S):
                    await asyncio.gather(call, return_exceptions=True)
                producer.engine.handover.release(ticket["lease"])
                await rest(producer, consumer)
            turns += 1
            assert turns < MAX_TURNS
