"""Each row of the hand-over's failure table as the router meets it, before fake engines."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from fakes.fake_engine import Act, FakeEngine, until
from fakes.router_asserts import PROMPT, assert_error, data_of
from triptych_contract.roles import Phase, Role, Stage

BODY: dict[str, Any] = {"model": "sim", "prompt": PROMPT, "max_tokens": 4}
STREAM = {**BODY, "stream": True}
TEXT = "t0 t1 t2 t3 "


def pair() -> tuple[FakeEngine, FakeEngine]:
    return FakeEngine("p", Role.PREFILL), FakeEngine("d", Role.DECODE)


async def test_a_mixed_instance_gets_the_clients_bytes_untouched(bench) -> None:
    raw = b'{ "prompt" : "caf\\u00e9  x",\n "model":"sim","zzz":[1, {"a":null}], "max_tokens":4 }  '
    engine = FakeEngine("m", Role.MIXED)
    async with bench(engine) as b:
        async with b.http.post(f"{b.url}/v1/completions", data=raw, headers={"content-type": "application/json"}) as r:
            assert r.status == 200
            assert r.headers["x-triptych-served-by"] == "prefill=m, decode=m"
    assert engine.legs[0].body == raw


async def test_a_hand_over_relays_the_whole_ticket_and_streams(bench) -> None:
    prefill, decode = pair()
    async with bench(prefill, decode) as b:
        status, body, headers = await b.post(STREAM)
        assert status == 200
        assert headers["x-triptych-served-by"] == "prefill=p, decode=d"
        assert headers["x-should-retry"] == "false"
        assert b": v1" not in body
        assert "".join(event["choices"][0]["text"] for event in data_of(body)) == TEXT
    sent = json.loads(decode.legs[0].body)
    assert sent["kv_transfer_params"]["unknown_member"] == [1]
    first, second = prefill.legs[0].headers, decode.legs[0].headers
    assert first["x-triptych-seed"] == second["x-triptych-seed"]
    assert first["x-request-id"] == second["x-request-id"]
    assert second["x-triptych-ledger"] == "1"
    assert "x-triptych-ledger" not in first
    assert not prefill.released, "the decode instance has taken the blocks"


async def test_images_go_by_an_encode_leg(bench) -> None:
    encode = FakeEngine("e", Role.ENCODE)
    prefill, decode = pair()
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"model": "sim", "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}, part]}]}
    async with bench(encode, prefill, decode) as b:
        status, _, headers = await b.post(body, path="/v1/chat/completions")
        assert (status, headers["x-triptych-served-by"]) == (200, "encode=e, prefill=p, decode=d")
        assert json.loads(prefill.legs[0].body)["kv_transfer_params"]["embeddings"]["remote_engine_id"] == "e"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("stage", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize(
    "act",
    [Act(refuse="moved"), Act(refuse="not_ready"), Act(refuse="overloaded"), Act(die_after=0), Act(attempt="99")],
    ids=["moved", "not-ready", "full", "dies", "stale-answer"],
)
async def test_a_leg_that_fails_before_its_first_byte_is_tried_elsewhere(bench, act, stage, stream) -> None:
    failing = FakeEngine("a", stage, act=act)
    good = FakeEngine("b", stage)
    other = FakeEngine("o", Role.DECODE if stage is Role.PREFILL else Role.PREFILL)
    async with bench(failing, good, other) as b:
        for _ in range(2):
            status, body, _ = await b.post({**BODY, "stream": stream})
            assert status == 200
            text = "".join(e["choices"][0]["text"] for e in (data_of(body) if stream else [json.loads(body)]))
            assert text == TEXT
    assert good.legs
    prefill_legs = sum(len(engine.of(Stage.PREFILL)) for engine in (failing, good, other))
    assert prefill_legs == (2 if stage is Role.DECODE else 2 + len(failing.legs)), "the same ticket serves again"


async def test_a_refused_ticket_is_released_and_the_prompt_computed_again(bench) -> None:
    prefill, decode = pair()
    decode.script.append(Act(refuse="handover_refused"))
    async with bench(prefill, decode) as b:
        assert (await b.post(BODY))[0] == 200
        await until(lambda: len(prefill.released) == 1, what="the refused ticket's lease is released")
    assert len(prefill.legs) == 2


async def test_a_decode_death_after_the_first_event_is_one_clean_error(bench) -> None:
    prefill, decode = pair()
    decode.script.append(Act(die_after=2))
    async with bench(prefill, decode) as b:
        status, body, _ = await b.post(STREAM)
    assert status == 200
    events = data_of(body)
    assert [("error" in event) for event in events] == [False, False, True]
    assert_error(events[-1])
    assert body.endswith(b"data: [DONE]\n\n")
    assert body.count(b"[DONE]") == 1


async def test_an_error_event_of_the_engine_passes_once(bench) -> None:
    engine = FakeEngine("m", Role.MIXED)
    engine.script.append(Act(error_event_after=2))
    async with bench(engine) as b:
        _, body, _ = await b.post(STREAM)
    assert [("error" in event) for event in data_of(body)] == [False, False, True]
    assert body.count(b"[DONE]") == 1


async def test_a_refusal_of_the_request_itself_is_forwarded_and_not_retried(bench) -> None:
    engines = FakeEngine("a", Role.MIXED, act=Act(refuse="context_length_exceeded")), FakeEngine("b", Role.MIXED)
    engines[1].act = engines[0].act
    async with bench(*engines) as b:
        status, body, _ = await b.post(BODY)
    assert status == 400
    assert_error(json.loads(body), code="context_length_exceeded")
    assert sum(len(engine.legs) for engine in engines) == 1


async def test_a_poisonous_request_is_tried_on_two_instances_at_most(bench) -> None:
    engines = [FakeEngine(name, Role.MIXED, act=Act(refuse="internal_error")) for name in "abcd"]
    async with bench(*engines) as b:
        status, body, _ = await b.post(BODY)
    assert status == 500
    assert_error(json.loads(body))
    assert sum(len(engine.legs) for engine in engines) == 2


async def test_a_missing_decode_stage_is_503_within_two_seconds(bench) -> None:
    async with bench(FakeEngine("p", Role.PREFILL), wait=False) as b:
        began = time.monotonic()
        status, body, headers = await b.post(BODY)
        assert time.monotonic() - began < 2
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert_error(json.loads(body), code="no_instance")
        async with b.http.get(f"{b.url}/readyz") as ready:
            assert ready.status == 503
            assert_error(await ready.json(), code="no_instance")


async def test_a_missing_prefill_stage_leaves_the_decode_instances_serving(bench) -> None:
    async with bench(FakeEngine("d", Role.DECODE)) as b:
        assert (await b.post(BODY))[0] == 200


async def test_a_lease_is_renewed_until_a_decode_instance_comes(bench) -> None:
    """The decode instance leaves while the prompt is computed; another one comes later."""
    prefill, decode = pair()
    late = FakeEngine("late", Role.DECODE, incarnation="9" * 32)
    async with bench(prefill, decode) as b:
        decode.act = Act(die_after=0)
        request = asyncio.create_task(b.post(BODY))
        await until(lambda: bool(decode.legs), what="the decode leg is tried")
        await decode.stop()
        await until(lambda: sum(prefill.renewed.values()) >= 2, what="the lease is renewed twice")
        await late.start(b.registry)
        status, _, headers = await request
        assert (status, headers["x-triptych-served-by"]) == (200, "prefill=p, decode=late")
        assert len(prefill.legs) == 1
        await late.stop()


async def test_a_deadline_without_a_decode_instance_is_503_and_releases(bench) -> None:
    prefill, decode = pair()
    decode.act = Act(die_after=0)
    async with bench(prefill, decode, request_timeout_s=1.2) as b:
        request = asyncio.create_task(b.post(BODY))
        await until(lambda: bool(decode.legs), what="the decode leg is tried")
        await decode.stop()
        status, body, _ = await request
        assert status == 503
        assert_error(json.loads(body), code="no_instance")
        await until(lambda: not prefill.leases, what="the lease is released")


async def test_a_request_over_its_deadline_is_504_and_cancelled(bench) -> None:
    engine = FakeEngine("m", Role.MIXED, act=Act(hang=True))
    async with bench(engine, request_timeout_s=0.3) as b:
        status, body, _ = await b.post(BODY)
        assert status == 504
        assert_error(json.loads(body), code="deadline_exceeded")
        await until(lambda: engine.running == 0, what="the leg is cancelled")
        assert int(engine.legs[0].headers["x-triptych-deadline-ms"]) <= 300


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("stage", [Stage.PREFILL, Stage.DECODE])
async def test_a_client_that_leaves_cancels_its_leg_and_frees_its_lease(bench, stream, stage) -> None:
    prefill, decode = pair()
    (prefill if stage is Stage.PREFILL else decode).act = Act(hang=True)
    engine = prefill if stage is Stage.PREFILL else decode
    async with bench(prefill, decode) as b:
        async with aiohttp.ClientSession() as client:
            request = asyncio.create_task(client.post(f"{b.url}/v1/completions", json={**BODY, "stream": stream}))
            await until(engine.arrived.is_set, what="the leg arrived")
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        await until(lambda: engine.cancelled == 1 and engine.running == 0, what="the leg is cancelled", deadline_s=1)
        await until(lambda: not prefill.leases, what="the lease is released", deadline_s=1)


@pytest.mark.parametrize("end", ["client", "deadline", "instance"])
async def test_a_ticket_that_nobody_read_is_given_back_by_the_name_it_was_asked_for(bench, end) -> None:
    """The prefill instance has granted the lease; whatever ends the leg then, the router knows the id."""
    prefill, decode = pair()
    prefill.may_answer.clear()
    async with bench(prefill, decode, request_timeout_s=0.5 if end == "deadline" else 60, retries=0) as b:
        async with aiohttp.ClientSession() as client:
            request = asyncio.create_task(client.post(f"{b.url}/v1/completions", json=BODY))
            await until(lambda: bool(prefill.leases), what="the lease is granted")
            lease = json.loads(prefill.legs[0].body)["kv_transfer_params"]["lease"]
            assert prefill.leases == {lease}
            if end == "client":
                request.cancel()
            elif end == "instance":
                prefill.cut()
            await asyncio.gather(request, return_exceptions=True)
        await until(lambda: not prefill.leases, what="the lease is released", deadline_s=1)
        assert prefill.released == [lease]


async def test_each_attempt_names_a_lease_of_its_own_and_a_refused_one_is_left_alone(bench) -> None:
    refusing, good = FakeEngine("a", Role.PREFILL, act=Act(refuse="overloaded")), FakeEngine("b", Role.PREFILL)
    async with bench(refusing, good, FakeEngine("d", Role.DECODE)) as b:
        for _ in range(2):
            assert (await b.post(BODY))[0] == 200
    legs = [*refusing.legs, *good.legs]
    assert len({json.loads(leg.body)["kv_transfer_params"]["lease"] for leg in legs}) == len(legs) >= 3
    assert not refusing.released


async def test_an_encode_leg_names_its_lease_too(bench) -> None:
    encode = FakeEngine("e", Role.ENCODE)
    encode.may_answer.clear()
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"model": "sim", "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}, part]}]}
    async with bench(encode, *pair(), request_timeout_s=0.4) as b:
        assert (await b.post(body, path="/v1/chat/completions"))[0] == 504
        await until(lambda: not encode.leases, what="the lease is released", deadline_s=1)
    assert encode.released == [json.loads(encode.legs[0].body)["triptych"]["lease"]]


async def test_a_client_that_leaves_amid_a_stream_cancels_it(bench) -> None:
    prefill, decode = pair()
    decode.events, decode.event_gap_s = 10_000, 0.01
    async with bench(prefill, decode) as b:
        async with aiohttp.ClientSession() as client:
            answer = await client.post(f"{b.url}/v1/completions", json=STREAM)
            await answer.content.readuntil(b"\n\n")
            answer.close()
        await until(lambda: decode.running == 0, what="the leg is cancelled", deadline_s=1)


async def test_a_stopped_instance_holds_nobody(bench) -> None:
    """Its connections stay open and silent; the beats end its life and the leg runs elsewhere."""
    stopped, good = FakeEngine("a", Role.MIXED, act=Act(hang=True)), FakeEngine("b", Role.MIXED, act=Act(hang=True))
    async with bench(stopped, good) as b:
        request = asyncio.create_task(b.post(BODY))
        await until(lambda: stopped.arrived.is_set() or good.arrived.is_set(), what="the leg arrived")
        holder, other = (stopped, good) if stopped.arrived.is_set() else (good, stopped)
        other.act, holder.mute = None, True
        status, _, headers = await request
        assert (status, headers["x-triptych-served-by"]) == (200, f"prefill={other.id}, decode={other.id}")


async def test_a_drained_instance_gets_nothing_and_round_robin_is_even(bench) -> None:
    engines = [FakeEngine(name, Role.MIXED) for name in "abcd"]
    engines[3].phase = Phase.DRAINING
    async with bench(*engines, policy="RoundRobin") as b:
        await until(lambda: len(b.router.services.watch.view().instances) == 4, what="all are in the view")
        for _ in range(10):
            assert (await b.post(BODY))[0] == 200
    served = [len(engine.legs) for engine in engines]
    assert served[3] == 0
    assert max(served[:3]) - min(served[:3]) <= 1


async def test_retries_stay_within_the_budget(bench) -> None:
    engines = [FakeEngine(name, Role.MIXED, act=Act(die_after=0)) for name in "abc"]
    async with bench(*engines) as b:
        answers = await asyncio.gather(*(b.post(BODY) for _ in range(60)))
        assert {status for status, _, _ in answers} <= {502, 503}
        for _, body, _ in answers:
            assert_error(json.loads(body))
    retries = sum(len(engine.legs) for engine in engines) - 60
    assert 0 < retries <= 10 + 0.2 * 60 + 30, "a floor a second, and a fifth of the requests"


async def test_requests_wait_in_the_queue_while_all_instances_are_full(bench) -> None:
    """More requests than the retry budget has retries: asking a full instance again takes none of it."""
    engines = [FakeEngine(name, Role.MIXED, act=Act(refuse="overloaded")) for name in "ab"]
    async with bench(*engines) as b:
        requests = [asyncio.create_task(b.post(BODY)) for _ in range(40)]
        await until(lambda: b.router.services.gate.waiting == 40, what="all of them wait")
        await until(lambda: sum(len(engine.legs) for engine in engines) > 200, what="they have asked again")
        for engine in engines:
            engine.act = None
        assert {status for status, _, _ in await asyncio.gather(*requests)} == {200}


async def test_instances_that_stay_full_are_a_503_after_the_queues_time(bench) -> None:
    async with bench(FakeEngine("m", Role.MIXED, act=Act(refuse="overloaded")), queue_timeout_s=0.3) as b:
        status, body, headers = await b.post(BODY)
    assert status == 503
    assert_error(json.loads(body), code="overloaded")
    assert headers["retry-after-ms"]


async def test_a_lease_is_the_decode_instances_to_renew_once_it_has_the_ticket(bench) -> None:
    prefill, decode = pair()
    decode.events, decode.event_gap_s = 12, 0.05
    async with bench(prefill, decode) as b:
        assert (await b.post(STREAM))[0] == 200
    assert not prefill.renewed


async def test_models_and_services_share_a_directory_without_meeting(bench) -> None:
    ours, other = FakeEngine("a", Role.MIXED), FakeEngine("b", Role.MIXED, model="other")
    foreign = FakeEngine("c", Role.MIXED, service="another")
    async with bench(ours, other, foreign) as b:
        await until(lambda: len(b.router.services.watch.view().instances) == 2, what="both are in the view")
        for _ in range(4):
            assert (await b.post(BODY))[0] == 200
        assert (await b.post({**BODY, "model": "other"}))[0] == 200
        status, body, _ = await b.post({name: value for name, value in BODY.items() if name != "model"})
        assert status == 400
        assert_error(json.loads(body), code="invalid_value", param="model")
        async with b.http.get(f"{b.url}/v1/models") as listed:
            assert [card["id"] for card in (await listed.json())["data"]] == ["other", "sim"]
    assert (len(ours.legs), len(other.legs), foreign.calls["events"]) == (4, 1, 0)


async def test_a_router_for_one_model_takes_no_instance_of_another(bench) -> None:
    ours, other = FakeEngine("a", Role.MIXED), FakeEngine("b", Role.MIXED, model="other")
    async with bench(ours, other, model="sim") as b:
        for _ in range(4):
            assert (await b.post({**BODY, "model": None}))[0] == 200
        assert (await b.post({**BODY, "model": "other"}))[0] == 404
    assert (len(ours.legs), len(other.legs)) == (4, 0)
