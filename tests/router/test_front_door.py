"""What clients meet at the router: endpoints, keys, limits, errors, logs, drain."""

import asyncio
import hashlib
import io
import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from fakes.fake_engine import TOKEN, Act, FakeEngine, until
from fakes.router_asserts import PROMPT, assert_error, data_of
from triptych_contract.clock import ManualClock
from triptych_contract.errors import Unauthorized
from triptych_contract.program.flags import SettingsError
from triptych_contract.roles import Role
from triptych_router.admission.keys import ApiKeys, KeyFileError, parse_keys
from triptych_router.settings import read_settings

BODY: dict[str, Any] = {"model": "sim", "prompt": PROMPT, "max_tokens": 4}


def key_line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/v1/completions", None, 405, "method_not_allowed"),
        ("GET", "/v1/models/none", None, 404, "model_not_found"),
        ("POST", "/v1/completions", b"{", 400, "invalid_value"),
        ("POST", "/v1/completions", b'{"model":"none","prompt":"a"}', 404, "model_not_found"),
        ("POST", "/v1/chat/completions", b'{"triptych":{}}', 400, "invalid_value"),
    ],
    ids=["path", "method", "model", "json", "unknown-model", "member"],
)
async def test_every_error_has_the_one_shape(bench, method, path, body, *, status, code) -> None:
    async with bench(FakeEngine("m", Role.MIXED)) as b:
        headers = {"content-type": "application/json"}
        async with b.http.request(method, b.url + path, data=body, headers=headers) as answer:
            assert answer.status == status
            assert_error(await answer.json(), code=code)


async def test_a_large_body_passes_and_a_larger_one_is_413(bench) -> None:
    engine = FakeEngine("m", Role.MIXED)
    headers = {"content-type": "application/json"}
    async with bench(engine) as b:
        large = json.dumps({**BODY, "prompt": "x" * (2 << 20)}).encode()
        async with b.http.post(f"{b.url}/v1/completions", data=io.BytesIO(large), headers=headers) as answer:
            assert answer.status == 200
        assert engine.legs[0].body == large
        too_large = io.BytesIO(b" " * (65 << 20))
        async with b.http.post(f"{b.url}/v1/completions", data=too_large, headers=headers) as answer:
            assert answer.status == 413
            assert_error(await answer.json(), code="payload_too_large")


async def test_another_content_type_is_refused(bench) -> None:
    async with bench(FakeEngine("m", Role.MIXED)) as b:
        async with b.http.post(f"{b.url}/v1/completions", data={"a": "b"}) as answer:
            assert answer.status == 415
            assert_error(await answer.json(), code="unsupported_media_type")


async def test_the_openai_client_is_content(bench) -> None:
    """Strict validation: models, chat and completions, streamed and not, errors."""
    async with bench(FakeEngine("p", Role.PREFILL), FakeEngine("d", Role.DECODE)) as b:
        client = openai.AsyncOpenAI(
            base_url=f"{b.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        )
        async with client:
            assert [model.id async for model in client.models.list()] == ["sim"]
            messages: Any = [{"role": "user", "content": PROMPT}]
            chat = await client.chat.completions.create(model="sim", messages=messages)
            assert chat.choices[0].message.content == "t0 t1 t2 t3 "
            stream = await client.chat.completions.create(model="sim", messages=messages, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "t0 t1 t2 t3 "
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="none", prompt="x")


async def test_probes_version_tokens_and_metrics(bench) -> None:
    async with bench(FakeEngine("m", Role.MIXED)) as b:
        for path in ("/health", "/livez", "/readyz", "/version", "/v1/models/sim"):
            async with b.http.get(b.url + path) as answer:
                assert answer.status == 200, path
        async with b.http.post(f"{b.url}/tokenize", json={"prompt": "x"}) as answer:
            assert (await answer.json())["count"] == 2
        await b.post(BODY)
        async with b.http.get(f"{b.url}/metrics") as answer:
            text = await answer.text()
        assert 'triptych_router_requests_total{model_name="sim",outcome="ok"} 1.0' in text
        assert 'triptych_router_instances{health="alive",role="mixed"} 1.0' in text
        assert 'triptych_router_request_seconds_bucket{le="+Inf",model_name="sim"} 1.0' in text
        async with b.http.head(f"{b.url}/metrics") as answer:
            assert answer.status == 200


async def test_headers_of_ours_from_a_client_are_stripped(bench) -> None:
    engine = FakeEngine("m", Role.MIXED)
    async with bench(engine) as b:
        sent = {"x-triptych-epoch": "99", "x-triptych-tenant": "root", "x-triptych-seed": "1", "x-request-id": "mine-1"}
        status, _, headers = await b.post({**BODY, "seed": 7}, headers=sent)
        assert (status, headers["x-request-id"]) == (200, "mine-1")
        _, _, minted = await b.post(BODY, headers={"x-request-id": "not safe\t!"})
        assert len(minted["x-request-id"]) == 32
    got = engine.legs[0].headers
    assert got["x-triptych-epoch"] == "1"
    assert "x-triptych-tenant" not in got
    assert "x-triptych-seed" not in got, "the client gave a seed"
    assert got["authorization"] == f"Bearer {TOKEN}"


async def test_keys_open_everything_but_the_probes(bench, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(key_line("alice", "alice-key"))
    engine = FakeEngine("m", Role.MIXED)
    async with bench(engine, api_keys=path) as b:
        for route in ("/v1/models", "/v1/completions", "/metrics", "/version", "/tokenize", "/nowhere"):
            async with b.http.request("POST" if "comp" in route else "GET", b.url + route) as answer:
                assert answer.status == 401, route
                assert_error(await answer.json(), code="invalid_api_key")
        for route in ("/health", "/livez", "/readyz"):
            async with b.http.get(b.url + route) as answer:
                assert answer.status == 200
        async with b.http.get(f"{b.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}) as answer:
            assert answer.status == 200
        async with b.http.get(f"{b.url}/v1/models", headers={"authorization": f"Bearer {TOKEN}"}) as answer:
            assert answer.status == 401
        assert (await b.post(BODY, headers={"authorization": "Bearer alice-key"}))[0] == 200
    assert engine.legs[0].headers["x-triptych-tenant"] == "alice"


def test_keys_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    path.write_text(key_line("alice", "a"))
    keys = ApiKeys(path, clock)
    assert keys.tenant("Bearer a") == "alice"
    path.write_text(key_line("bob", "b"))
    os.utime(path, ns=(1, 1))
    clock.advance(2)
    assert keys.tenant("bearer b") == "bob"
    with pytest.raises(Unauthorized):
        keys.tenant("Bearer a")
    path.write_text("nonsense")
    clock.advance(2)
    assert keys.tenant("Bearer b") == "bob", "a faulty file leaves the keys as they were"
    for wrong in ("", "Bearer ", "Basic b", "b", "Bearer bob"):
        with pytest.raises(Unauthorized):
            keys.tenant(wrong)


@pytest.mark.parametrize("text", ["", "# only a comment", "a:b", key_line("a", "x") * 2, ":" + "0" * 64])
def test_a_faulty_key_file_is_refused(text: str) -> None:
    with pytest.raises(KeyFileError):
        parse_keys(text)


def test_all_faults_of_the_settings_come_together(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("x")
    with pytest.raises(SettingsError) as refused:
        read_settings(
            ["--discovery", "etcd", "--host", "0.0.0.0", "--port", "-1", "--token-file", str(short), "--insecure"]
        )
    assert len(refused.value.faults) == 5
    with pytest.raises(SettingsError, match="--token-file is needed"):
        read_settings(["--discovery", "local:x"])
    assert read_settings(["--discovery", "local:x", "--insecure"]).service_token == ""


async def test_one_line_ends_each_request_and_holds_no_text(
    bench, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "triptych.router")
    async with bench(FakeEngine("p", Role.PREFILL), FakeEngine("d", Role.DECODE)) as b:
        await b.post({**BODY, "stream": True}, headers={"x-request-id": "r1"})
        await b.post({**BODY, "stream": 5}, headers={"x-request-id": "r2"})
    written = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lines = {line["request_id"]: line for line in written if line["event"] == "request"}
    assert set(lines) == {"r1", "r2"}
    assert lines["r1"]["route"] == "prefill=p, decode=d"
    assert (lines["r1"]["tokens"], lines["r1"]["outcome"]) == (4, "ok")
    assert lines["r1"]["attempts"] == {"prefill": 1, "decode": 1}
    assert lines["r1"]["ttft_s"] > 0
    assert (lines["r2"]["outcome"], lines["r2"]["code"]) == ("refused", "invalid_value")
    assert lines["r1"].keys() == lines["r2"].keys()
    assert "word1" not in json.dumps(list(lines.values()))


async def test_a_full_queue_is_503_at_once_and_a_full_key_429(bench, tmp_path: Path) -> None:
    async with bench(FakeEngine("p", Role.PREFILL), wait=False, max_queue=1) as b:
        await until(lambda: bool(b.router.services.watch.view().instances), what="the view has the instance")
        answers = await asyncio.gather(*(b.post(BODY) for _ in range(3)))
        codes = sorted(json.loads(body)["error"]["code"] for _, body, _ in answers)
        assert codes == ["no_instance", "overloaded", "overloaded"]
        assert all(headers["retry-after-ms"] for _, _, headers in answers)
    engine = FakeEngine("m", Role.MIXED, act=Act(hang=True))
    async with bench(engine, max_requests_per_key=1, request_timeout_s=0.5) as b:
        first = asyncio.create_task(b.post(BODY))
        await engine.arrived.wait()
        status, body, headers = await b.post(BODY)
        assert (status, headers["retry-after"]) == (429, "1")
        assert_error(json.loads(body), code="rate_limited")
        await first


async def test_full_instances_are_waited_for(bench) -> None:
    engine = FakeEngine("m", Role.MIXED)
    engine.script.extend([Act(refuse="overloaded")] * 3)
    async with bench(engine) as b:
        assert (await b.post(BODY))[0] == 200


async def test_a_drain_finishes_what_runs_and_takes_nothing_new(bench) -> None:
    engine = FakeEngine("m", Role.MIXED, event_gap_s=0.1)
    async with bench(engine) as b:
        running = asyncio.create_task(b.post({**BODY, "stream": True}))
        await engine.arrived.wait()
        draining = asyncio.create_task(b.router.drain(5.0))
        status, body, _ = await running
        assert status == 200
        assert len(data_of(body)) == 4
        await draining
        assert not b.router.front.ready()
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as fresh:
                await fresh.get(f"{b.url}/livez")


async def test_counters_return_to_zero_after_any_mix(bench) -> None:
    """Refusals, deaths, hangs and clients that leave; the fixture waits for zero."""
    source = random.Random(5)
    acts = [Act(), Act(), Act(), Act(die_after=0), Act(die_after=1), Act(refuse="moved"), Act(refuse="overloaded")]
    engines = [
        FakeEngine(f"{role}{n}", role, event_gap_s=0.002) for role in (Role.PREFILL, Role.DECODE) for n in (0, 1)
    ]
    for engine in engines:
        engine.script.extend(source.choice(acts) for _ in range(200))
    async with bench(*engines) as b:

        async def one() -> None:
            patience_s = source.choice([0.005, 0.02, 5.0])
            with_stream = {**BODY, "stream": source.random() < 0.5}
            try:
                async with asyncio.timeout(patience_s):
                    await b.post(with_stream)
            except TimeoutError:
                pass

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(12)))
        await until(b.quiet, what="all counters are back at zero")
        await until(lambda: not any(engine.running for engine in engines), what="no leg runs")


async def test_a_long_answer_of_the_tokenizer_passes_whole_and_a_lost_one_is_a_502(bench) -> None:
    engine = FakeEngine("m", Role.MIXED, padding="x" * 3_000_000)
    async with bench(engine) as b:
        async with b.http.post(f"{b.url}/tokenize", json={"prompt": "x"}) as answer:
            assert len((await answer.json())["padding"]) == 3_000_000
        engine.act = Act(die_after=0)
        async with b.http.post(f"{b.url}/tokenize", json={"prompt": "x"}) as answer:
            assert answer.status == 502
            assert_error(await answer.json(), code="upstream_failed")
