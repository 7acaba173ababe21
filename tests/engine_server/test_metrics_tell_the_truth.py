"""What `/metrics` says after requests whose numbers are known, and what the step log and the audit say beside it."""

import asyncio
import json
from typing import Any

import pytest

from fakes.fleet import Fleet
from triptych_engine.server.times import Times

pytestmark = pytest.mark.process

STEP_S = 0.02
PROFILE = ("--sim-profile", f"{STEP_S},0,0,0,0")


async def scrape(fleet: Fleet, name: str) -> dict[str, float]:
    """The metrics of an engine, summed over labels but those of buckets."""
    found: dict[str, float] = {}
    async with fleet.http.get(fleet.children[name].url + "/metrics", headers=fleet.auth) as answer:
        for line in (await answer.text()).splitlines():
            if not line.startswith("#"):
                head, _, value = line.rpartition(" ")
                found[head.partition("{")[0]] = found.get(head.partition("{")[0], 0.0) + float(value)
    return found


async def complete(fleet: Fleet, name: str, body: dict[str, Any]) -> dict[str, Any]:
    url = fleet.children[name].url + "/v1/completions"
    async with fleet.http.post(url, json=body, headers=fleet.auth) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()  # type: ignore[no-any-return]


class TestRequestTimes:
    async def test_are_observed_once_a_request_and_add_up(self, fleet: Fleet) -> None:
        await fleet.start_engine("e", "mixed", *PROFILE, "--max-sequences", "1")
        body = {"prompt": "hello", "max_tokens": 5, "ignore_eos": True}
        await asyncio.gather(*(complete(fleet, "e", {**body, "stream": False}) for _ in range(4)))
        after = await scrape(fleet, "e")
        for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
            assert after[f"vllm:{name}_seconds_count"] == 4, name
        assert after["vllm:time_to_first_token_seconds_count"] == 4
        assert after["vllm:inter_token_latency_seconds_count"] == 4 * 4
        assert after["vllm:request_time_per_output_token_seconds_count"] == 4
        # One sequence at a time: the second request waits for one other, the fourth for three.
        assert after["vllm:request_queue_time_seconds_sum"] >= (1 + 2 + 3) * 5 * STEP_S * 0.9
        assert after["vllm:request_decode_time_seconds_sum"] >= 4 * 4 * STEP_S * 0.9
        parts = sum(after[f"vllm:request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode"))
        assert parts <= after["vllm:e2e_request_latency_seconds_sum"]
        assert after["triptych_engine_scheduler_seconds_total"] > 0

    async def test_of_a_prefill_leg_have_no_decode_part(self, fleet: Fleet) -> None:
        await fleet.start_engine("e", "prefill", *PROFILE)
        await complete(fleet, "e", {"prompt": "hello " * 9, "kv_transfer_params": {"do_remote_decode": True}})
        after = await scrape(fleet, "e")
        assert after["vllm:request_queue_time_seconds_count"] == 1
        assert after["vllm:request_prefill_time_seconds_sum"] >= STEP_S * 0.9
        assert after["vllm:request_decode_time_seconds_count"] == 0

    def test_without_any_token_only_the_whole_time_is_told(self) -> None:
        times = Times(arrived_s=1.0, submitted_s=2.0)
        assert list(times.observations({0: 0}, end_s=4.0)) == [("vllm:e2e_request_latency_seconds", 3.0)]

    def test_are_those_of_the_first_token_where_several_choices_run(self) -> None:
        times = Times(arrived_s=1.0, submitted_s=2.0)
        assert times.note(1, 5.0, 3.0) is None
        assert times.note(0, 6.0, 4.0) is None
        assert times.note(1, 7.5, 0.0) == 2.5
        told = dict(times.observations({0: 1, 1: 2}, end_s=8.0))
        assert told["vllm:request_queue_time_seconds"] == 1.0
        assert told["vllm:request_prefill_time_seconds"] == 2.0
        assert told["vllm:request_decode_time_seconds"] == 2.5
        assert told["vllm:request_time_per_output_token_seconds"] == 2.5


class TestTheStepLog:
    async def test_has_one_line_for_each_step_at_level_debug(self, fleet: Fleet) -> None:
        await fleet.start_engine("e", "mixed", "--sim-profile", "0.001,0,0,0,0", "--log-level", "debug")
        await complete(fleet, "e", {"prompt": "hello", "max_tokens": 6, "ignore_eos": True})
        steps = [line for line in logged(fleet, "e") if line["event"] == "step"]
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
        assert [line["tokens"] for line in steps] == [5, 1, 1, 1, 1, 1]
        assert all(line["rows"] == 1 and line["seconds"] > 0.0005 for line in steps)

    async def test_is_silent_otherwise(self, fleet: Fleet) -> None:
        await fleet.start_engine("e", "mixed", "--sim-profile", "0.001,0,0,0,0")
        await complete(fleet, "e", {"prompt": "hello", "max_tokens": 6})
        assert not [line for line in logged(fleet, "e") if line["event"] == "step"]


class TestTheAudit:
    async def test_finds_no_fault_and_counts_what_is_held(self, fleet: Fleet) -> None:
        await fleet.start_engine("e", "mixed", *PROFILE)
        await complete(fleet, "e", {"prompt": "hello " * 9, "kv_transfer_params": {"do_remote_decode": True}})
        report = await fleet.audit("e")
        assert report["faults"] == []
        assert report["stats"]["leases"] == 1
        assert report["stats"]["blocks"]["in_transfer"] > 0
        assert report["server"] == {"calls": 0, "open": 0, "leases": 1}

    async def test_needs_the_service_token(self, fleet: Fleet) -> None:
        await fleet.start_engine("e", "mixed")
        async with fleet.http.get(fleet.children["e"].url + "/instance/audit") as answer:
            assert answer.status == 401


def logged(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """All log lines of a program and its core; each is one JSON object."""
    return [json.loads(line) for line in fleet.children[name].log.read_text().splitlines()]
