"""One simulated engine as its clients see it: the OpenAI API, vanished clients, the instance API, its end."""

import asyncio
import json
import os
import signal
from typing import Any

import aiohttp
import openai
import pytest

from fakes.fleet import Fleet
from triptych_contract import headers
from triptych_contract.errors import parse_error
from triptych_contract.ledger import parse_entry
from triptych_contract.roles import Phase, Role

pytestmark = pytest.mark.process

FAST = ("--sim-profile", "0.001,0,0,0,0")
SLOW = ("--sim-profile", "0.02,0,0,0,0")
TEXT = {"prompt": "hello", "max_tokens": 4, "seed": 7, "ignore_eos": True}
CHAT = [{"role": "user", "content": "hi"}]


async def call(fleet: Fleet, method: str, path: str, body: Any = None, **extra: str) -> tuple[int, Any]:
    """Status and JSON of one call with the service token."""
    url = fleet.children["e"].url + path
    async with fleet.http.request(method, url, json=body, headers={**fleet.auth, **extra}) as answer:
        return answer.status, await answer.json()


async def refused(answer: aiohttp.ClientResponse, status: int, code: str | None) -> None:
    """The answer is one error in OpenAI's shape, and says nothing of the inside."""
    data = await answer.read()
    error = parse_error(data)
    assert error is not None, data
    assert (answer.status, json.loads(data)["error"]["code"]) == (status, code), data
    assert answer.headers[headers.REQUEST_ID]
    assert not any(word in data for word in (b"Traceback", b"/usr/", b"0x", b"127.0.0.1"))


async def engine(fleet: Fleet, *flags: str, role: str = "all") -> str:
    child = await fleet.start_engine("e", role, *(flags or FAST))
    return child.url


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url + "/v1", api_key="any", max_retries=0, _strict_response_validation=True, timeout=30
    )


class TestTheOpenAIClient:
    async def test_gets_chat_completions_models_and_errors(self, fleet: Fleet) -> None:
        async with client(await engine(fleet)) as api:
            chat = await api.chat.completions.create(
                model="sim",
                messages=CHAT,
                max_tokens=5,
                n=2,
                logprobs=True,
                top_logprobs=2,  # type: ignore[arg-type]
            )
            assert [choice.index for choice in chat.choices] == [0, 1]
            assert len(chat.choices[0].logprobs.content) == chat.usage.completion_tokens // 2
            text = await api.completions.create(model="sim", prompt=["a", "b"], max_tokens=3, logprobs=2)
            assert [len(choice.logprobs.tokens) for choice in text.choices] == [3, 3]
            assert [model.id async for model in api.models.list()] == ["sim"]
            assert (await api.models.retrieve("sim")).id == "sim"
            with pytest.raises(openai.NotFoundError):
                await api.completions.create(model="other", prompt="a")
            with pytest.raises(openai.BadRequestError) as caught:
                await api.chat.completions.create(model="sim", messages=CHAT, temperature=3)  # type: ignore[arg-type]
            assert caught.value.param == "temperature"

    async def test_streams_the_text_of_the_whole_answer(self, fleet: Fleet) -> None:
        async with client(await engine(fleet)) as api:
            asked: dict[str, Any] = {"model": "sim", "messages": CHAT, "max_tokens": 8, "seed": 3}
            whole = await api.chat.completions.create(**asked)
            stream = await api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            said = [chunk.choices[0] for chunk in chunks if chunk.choices]
            assert "".join(choice.delta.content or "" for choice in said) == whole.choices[0].message.content
            assert [c.finish_reason for c in said if c.finish_reason] == [whole.choices[0].finish_reason]
            assert said[0].delta.role == "assistant"
            assert chunks[-1].usage == whole.usage.model_copy(
                update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
            )

    async def test_a_stop_string_ends_the_text_before_it(self, fleet: Fleet) -> None:
        async with client(await engine(fleet)) as api:
            asked: dict[str, Any] = {"model": "sim", "prompt": "x", "max_tokens": 12, "seed": 5}
            more = {"ignore_eos": True}
            whole = (await api.completions.create(**asked, extra_body=more)).choices[0].text
            cut = await api.completions.create(**asked, stop=whole[4:6], extra_body=more)
            assert (cut.choices[0].text, cut.choices[0].finish_reason) == (whole[: whole.index(whole[4:6])], "stop")
            assert cut.usage is not None
            assert cut.usage.completion_tokens == whole.index(whole[4:6]) + 2
        await fleet.settled("e")


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "content_type", "data", "status", "code"),
        [
            ("/v1/completions", "application/json", b"{", 400, "invalid_value"),
            ("/v1/completions", "text/plain", b"{}", 415, "unsupported_media_type"),
            ("/v1/chat/completions", "application/json", b'{"messages":[],"n":1}', 400, "invalid_value"),
            ("/v1/completions", "application/json", b'{"prompt":""}', 400, "invalid_value"),
            ("/v1/completions", "application/json", b'{"prompt":[99999]}', 400, "invalid_value"),
            ("/v1/completions", "application/json", b'{"prompt":"<|image|>"}', 400, "invalid_value"),
            (
                "/v1/completions",
                "application/json",
                b'{"prompt":"a","max_tokens":99999}',
                400,
                "context_length_exceeded",
            ),
            ("/v1/completions", "application/json", b'{"prompt":"a","suffix":"b"}', 400, "unsupported_parameter"),
            ("/v1/completions", "application/json", b'{"prompt":"a","kv_transfer_params":{}}', 403, "forbidden"),
            ("/v1/completions", "application/json", b'{"prompt":"a","triptych":{"encode":true}}', 403, "forbidden"),
            ("/v1/nothing", "application/json", b"{}", 404, "not_found"),
            ("/v1/models", "application/json", b"{}", 405, "method_not_allowed"),
            ("/instance/role", "application/json", b"{}", 401, "invalid_api_key"),
        ],
    )
    async def test_have_one_shape(
        self, fleet: Fleet, *, path: str, content_type: str, data: bytes, status: int, code: str
    ) -> None:
        url = await engine(fleet)
        async with fleet.http.post(url + path, data=data, headers={"content-type": content_type}) as answer:
            await refused(answer, status, code)

    async def test_images_are_taken_from_data_uris_only(self, fleet: Fleet) -> None:
        url = await engine(fleet)
        for image in ("http://169.254.169.254/", "file:///etc/passwd", "data:image/png;base64,AAAA"):
            content = [{"type": "image_url", "image_url": {"url": image}}]
            body = {"messages": [{"role": "user", "content": content}]}
            async with fleet.http.post(url + "/v1/chat/completions", json=body) as answer:
                assert answer.status in (400, 415)
                assert parse_error(await answer.read()) is not None


class TestAVanishedClient:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_frees_its_blocks_within_two_steps(self, fleet: Fleet, stream: bool) -> None:
        await engine(fleet, *SLOW)
        body = {"prompt": "hello", "max_tokens": 4000, "stream": stream, "ignore_eos": True, "n": 2}
        asking = asyncio.create_task(call(fleet, "POST", "/v1/completions", body))

        async def running() -> bool:
            state = await fleet.state("e")
            return state is not None and state.load.running > 0

        await fleet.until(running, what="the request runs")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        before = await fleet.state("e")
        assert before is not None
        after = (await fleet.settled("e"))["e"]
        assert after.load.step - before.load.step <= 4

    async def test_with_a_prefill_leg_leaves_no_lease(self, fleet: Fleet) -> None:
        await engine(fleet, "--sim-profile", "0.05,0,0,0,0")
        body = {"prompt": "long " * 300, "kv_transfer_params": {"do_remote_decode": True}}
        url = fleet.children["e"].url + "/v1/completions"
        with pytest.raises(TimeoutError):
            async with fleet.http.post(url, json=body, headers=fleet.auth, timeout=aiohttp.ClientTimeout(total=0.03)):
                pass
        await fleet.settled("e")


class TestBetweenRouterAndEngine:
    async def test_headers_count_only_with_the_token(self, fleet: Fleet) -> None:
        url = await engine(fleet)
        told = {headers.CREATED: "5", headers.LEDGER: "1", headers.REQUEST_ID: "req-1", headers.SEED: "9"}
        for auth, trusted in ((fleet.auth, True), ({}, False)):
            body = {**TEXT, "stream": True}
            async with fleet.http.post(url + "/v1/completions", json=body, headers={**auth, **told}) as answer:
                events = [event for event in (await answer.read()).split(b"\n\n") if event]
            entries = [parse_entry(event.split(b"\n")[0] + b"\n") for event in events]
            assert [entry is not None for entry in entries] == [trusted] * (len(events) - 1) + [False]
            first = json.loads(events[0].rpartition(b"data: ")[2])
            assert (first["id"], first["created"] == 5) == ("cmpl-req-1", trusted)
        ids = [token for entry in entries if entry for token in entry.token_ids]
        assert ids == []

    async def test_an_epoch_that_is_not_held_is_moved_and_a_deadline_is_kept(self, fleet: Fleet) -> None:
        await engine(fleet, *SLOW)
        assert (await call(fleet, "POST", "/v1/completions", TEXT, **{headers.EPOCH: "2"}))[0] == 409
        assert (await call(fleet, "POST", "/v1/completions", TEXT, **{headers.EPOCH: "1"}))[0] == 200
        long = {**TEXT, "max_tokens": 1000}
        status, body = await call(fleet, "POST", "/v1/completions", long, **{headers.DEADLINE_MS: "150"})
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
        await fleet.settled("e")


class TestTheInstanceAPI:
    async def test_roles_are_idempotent_by_epoch_and_mask_new_work(self, fleet: Fleet) -> None:
        await engine(fleet, role="mixed")
        assert (await call(fleet, "POST", "/instance/role", {"role": "prefill", "epoch": 2}))[0] == 200
        assert (await call(fleet, "POST", "/instance/role", {"role": "prefill", "epoch": 2}))[0] == 200
        for stale in ({"role": "decode", "epoch": 2}, {"role": "decode", "epoch": 1}):
            status, body = await call(fleet, "POST", "/instance/role", stale)
            assert (status, body["error"]["code"]) == (409, "epoch_conflict")
        status, body = await call(fleet, "POST", "/v1/completions", TEXT)
        assert (status, body["error"]["code"]) == (409, "moved")

    async def test_a_drain_refuses_new_work_until_it_is_cancelled(self, fleet: Fleet) -> None:
        await engine(fleet)
        status, state = await call(fleet, "POST", "/instance/drain", {})
        assert (status, state["phase"]) == (200, Phase.DRAINED)
        assert (await call(fleet, "POST", "/v1/completions", TEXT))[1]["error"]["code"] == "not_ready"
        await call(fleet, "POST", "/instance/drain", {"cancel": True})
        assert (await call(fleet, "POST", "/v1/completions", TEXT))[0] == 200

    async def test_the_stream_begins_with_the_state_and_counts_without_a_gap(self, fleet: Fleet) -> None:
        url = await engine(fleet)
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(10), fleet.http.get(url + "/instance/events", headers=fleet.auth) as answer:
            await call(fleet, "POST", "/instance/role", {"role": "decode", "epoch": 5})
            async for line in answer.content:
                seen.append(json.loads(line))
                if len(seen) >= 5:
                    break
        assert seen[0]["type"] == "state"
        assert [event["seq"] for event in seen] == list(range(seen[0]["seq"], seen[0]["seq"] + 5))
        assert any(event["type"] == "state" and event["state"]["role"] == Role.DECODE for event in seen)

    async def test_releasing_a_lease_frees_its_blocks_and_may_be_repeated(self, fleet: Fleet) -> None:
        await engine(fleet)
        leg = {"prompt": "hello " * 20, "kv_transfer_params": {"do_remote_decode": True}}
        status, body = await call(fleet, "POST", "/v1/completions", leg)
        lease = body["kv_transfer_params"]["lease"]
        assert (status, body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (200, "", "length")
        assert (await call(fleet, "POST", f"/instance/leases/{lease}"))[1]["ttl_ms"] == 2000
        for _ in range(2):
            assert (await call(fleet, "DELETE", f"/instance/leases/{lease}"))[0] == 200
        assert (await call(fleet, "POST", f"/instance/leases/{lease}"))[0] == 409
        await fleet.settled("e")

    async def test_metrics_have_every_series_of_the_table(self, fleet: Fleet) -> None:
        url = await engine(fleet)
        await call(fleet, "POST", "/v1/completions", TEXT)
        async with fleet.http.get(url + "/metrics") as answer:
            text = await answer.text()
        assert 'vllm:request_success_total{engine="e",finished_reason="length",model_name="sim"} 1.0' in text
        assert 'vllm:time_to_first_token_seconds_count{engine="e",model_name="sim"} 1.0' in text


class TestItsEnd:
    async def test_sigterm_finishes_what_runs_and_refuses_new_work(self, fleet: Fleet) -> None:
        await engine(fleet, *SLOW, "--drain-s", "10")
        running = asyncio.create_task(call(fleet, "POST", "/v1/completions", {**TEXT, "max_tokens": 30}))

        async def runs() -> bool:
            state = await fleet.state("e")
            return state is not None and state.load.running > 0

        await fleet.until(runs, what="the request runs")
        fleet.children["e"].kill(signal.SIGTERM)
        assert (await running)[0] == 200
        async with asyncio.timeout(10):
            assert await fleet.children["e"].process.wait() == 0

    async def test_a_lost_core_ends_requests_with_one_error_and_then_the_program(self, fleet: Fleet) -> None:
        await engine(fleet, *SLOW)
        body = {**TEXT, "max_tokens": 1000, "stream": True}
        url = fleet.children["e"].url + "/v1/completions"
        async with fleet.http.post(url, json=body) as answer:
            await answer.content.readline()
            for pid in fleet.children["e"].core_pids():
                os.kill(pid, signal.SIGKILL)
            rest = await answer.read()
        events = [event for event in rest.split(b"\n\n") if event]
        assert events[-1] == b"data: [DONE]"
        assert json.loads(events[-2].strip().removeprefix(b"data: "))["error"]["code"] == "internal_error"
        async with asyncio.timeout(10):
            assert await fleet.children["e"].process.wait() == 1
