"""The `openai` client in strict validation against router, prefill and decode instance."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from fakes.asking import vanish
from fakes.fleet import Fleet, fleet_in

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

LONG = " ".join(f"word{i}" for i in range(60))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A prefill and a decode instance behind a router, slow enough that a stream takes a while."""
    async with fleet_in(tmp_path_factory.mktemp("pair")) as fleet:
        slow = ("--sim-profile", "0.005,0.00001,0,0.0001,0")
        await asyncio.gather(*(fleet.start_engine(f"{role}-0", role, *slow) for role in ("prefill", "decode")))
        await fleet.start_router()
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(pair: Fleet) -> AsyncIterator[openai.AsyncOpenAI]:
    """A strict client without retries, so that an error shows."""
    made = openai.AsyncOpenAI(
        base_url=f"{pair.router.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )
    yield made
    await made.close()


async def test_a_chat_is_answered_with_usage(client: openai.AsyncOpenAI, pair: Fleet) -> None:
    """Not streamed, through a hand-over."""
    before = (await pair.settled("decode-0"))["decode-0"].load.handover
    answer = await client.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": LONG}], max_tokens=12, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    after = (await pair.settled("decode-0"))["decode-0"].load.handover
    assert after.requests == before.requests + 1
    assert after.tokens_recomputed == before.tokens_recomputed + 1


async def test_usage_counts_what_the_prefix_cache_held_and_not_what_was_handed_over(
    client: openai.AsyncOpenAI,
) -> None:
    """A prompt asked for the first time, then again."""
    cached = []
    for _ in range(2):
        answer = await client.completions.create(model="sim", prompt=f"cached {LONG}", max_tokens=2, temperature=0)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert cached[1] is not None
    assert cached[1] >= 32


async def test_a_stream_gives_the_text_of_the_whole_answer(client: openai.AsyncOpenAI) -> None:
    """Same seed, streamed and not."""
    request: dict[str, Any] = {
        "model": "sim",
        "messages": [{"role": "user", "content": LONG}],
        "max_tokens": 30,
        "seed": 5,
    }
    whole = await client.chat.completions.create(**request)
    text, usage, ends = "", None, []
    stream = await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content
    assert ends == [whole.choices[0].finish_reason]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_log_probabilities_come_with_chat_and_completions(client: openai.AsyncOpenAI) -> None:
    """The chosen token is among the alternatives when it is the most likely one."""
    chat = await client.chat.completions.create(
        model="sim",
        messages=[{"role": "user", "content": LONG}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == chat.usage.completion_tokens if chat.usage else False
    for token in logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
    completion = await client.completions.create(model="sim", prompt=LONG, max_tokens=4, temperature=0, logprobs=2)
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.token_logprobs


async def test_errors_are_typed(client: openai.AsyncOpenAI) -> None:
    """Bad values, unsupported members, unknown models and prompts that are too long."""
    message: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="sim", messages=message, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unsupported:
        await client.chat.completions.create(model="sim", messages=message, response_format={"type": "json_object"})
    assert unsupported.value.param == "response_format"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="no-such-model", messages=message)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model="sim", prompt="a" * 200_000, max_tokens=4)
    assert long.value.code == "context_length_exceeded"


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    """As the client lists and retrieves them."""
    listed = [model.id async for model in client.models.list()]
    assert listed == ["sim"]
    assert (await client.models.retrieve("sim")).id == "sim"


@pytest.mark.parametrize("member", ["kv_transfer_params", "triptych"])
async def test_a_client_cannot_name_a_hand_over(client: openai.AsyncOpenAI, member: str) -> None:
    """Neither in the body's clear nor twice; and headers of ours are stripped."""
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(
            model="sim", prompt=LONG, max_tokens=2, extra_body={member: {"do_remote_decode": True}}
        )
    assert refused.value.param == member
    answer = await client.completions.create(
        model="sim",
        prompt=LONG,
        max_tokens=2,
        temperature=0,
        extra_headers={"x-triptych-epoch": "999", "x-triptych-deadline-ms": "1", "x-triptych-ledger": "1"},
    )
    assert answer.choices[0].finish_reason in ("length", "stop")


async def test_an_escaped_member_name_does_not_pass_either(pair: Fleet) -> None:
    """`kv_transfer_params` written with a unicode escape is the same member."""
    body = b'{"model": "sim", "prompt": "x", "max_tokens": 1, "kv_transfer_\\u0070arams": {"do_remote_decode": true}}'
    async with pair.http.post(
        f"{pair.router.url}/v1/completions", data=body, headers={"content-type": "application/json"}
    ) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "kv_transfer_params"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_vanished_client_frees_its_blocks_within_two_steps(pair: Fleet, stream: bool) -> None:
    """The decode instance is held in long steps' company: it computes at most two steps more for the request."""
    body = {"model": "sim", "prompt": LONG + str(stream), "max_tokens": 5000, "ignore_eos": True, "stream": stream}
    task = asyncio.create_task(
        vanish(pair.router.http_port, body, path="/v1/completions", sent=None, read=10**6, patience_s=20)
    )

    async def runs() -> bool:
        state = await pair.state("decode-0")
        return state is not None and state.load.running == 1

    await pair.until(runs, what="the request decodes", deadline_s=10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gone = await pair.state("decode-0")
    assert gone is not None
    states = await pair.settled(deadline_s=2)
    first_seen_idle = states["decode-0"].load.step
    assert first_seen_idle - gone.load.step <= 4, "two steps, and two for the time of asking"
