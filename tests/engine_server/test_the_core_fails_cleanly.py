"""The core dies, hangs or fails, or the server dies or is told to end: one end for each request, no process left."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fakes.asking import Answer, ask
from fakes.fleet import Child, Fleet

pytestmark = pytest.mark.process

STEP_S = 0.02
SLOW = ("--sim-profile", f"{STEP_S},0,0,0,0")
LONG: dict[str, Any] = {"model": "sim", "prompt": "hello", "max_tokens": 2000, "ignore_eos": True}
LEG: dict[str, Any] = {"model": "sim", "prompt": "hello " * 20, "kv_transfer_params": {"do_remote_decode": True}}


async def armed(fleet: Fleet, points: str, *flags: str) -> Child:
    """One engine with failpoints."""
    return await fleet.start_engine(
        "e", "all", "--enable-failpoints", *(flags or SLOW), env={"TRIPTYCH_FAILPOINTS": points}
    )


def alive(pid: int) -> bool:
    """True unless the process is gone; one that nobody has reaped yet is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool], *, deadline_s: float) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - a process tells nobody but its parent
            await asyncio.sleep(0.01)


async def exit_code(child: Child, *, deadline_s: float = 10.0) -> int:
    async with asyncio.timeout(deadline_s):
        return await child.process.wait()


async def running(fleet: Fleet, count: int) -> None:
    """Wait until so many requests run."""

    async def run() -> bool:
        state = await fleet.state("e")
        return state is not None and state.load.running >= count

    await fleet.until(run, what=f"{count} requests run", deadline_s=10)


def check_clean_error(answer: Answer, code: str = "internal_error") -> None:
    assert answer.ends == 1, answer
    assert answer.error is not None
    assert answer.error["code"] == code
    assert not any(word in json.dumps(answer.error) for word in ("/", "127.0.0.1", "Traceback"))


class TestACore:
    @pytest.mark.parametrize("point", ["core.step", "core.commit"])
    async def test_that_is_killed_gives_each_open_request_one_error_and_ends_the_program(
        self, fleet: Fleet, point: str
    ) -> None:
        child = await armed(fleet, f"{point}=kill")
        (core,) = child.core_pids()
        asked = [ask(fleet.http, child.url, {**LONG, "stream": stream}) for stream in (True, False, True)]
        leg = ask(fleet.http, child.url, LEG, headers=fleet.auth)
        for answer in await asyncio.gather(*asked, leg):
            check_clean_error(answer)
        assert await exit_code(child) == 1
        assert not alive(core)

    async def test_that_fails_one_step_refuses_its_requests_and_goes_on(self, fleet: Fleet) -> None:
        child = await armed(fleet, "core.step=error*1")
        check_clean_error(await ask(fleet.http, child.url, LONG))
        answer = await ask(fleet.http, child.url, {**LONG, "max_tokens": 3})
        assert (answer.status, answer.finish_reason) == (200, "length")
        await fleet.settled("e")

    async def test_that_fails_again_and_again_ends_the_program(self, fleet: Fleet) -> None:
        child = await armed(fleet, "core.commit=error")
        (core,) = child.core_pids()
        for answer in await asyncio.gather(*(ask(fleet.http, child.url, LONG) for _ in range(3))):
            check_clean_error(answer)
        # The second failing step in a row ends the core; if all three shared the first one, this makes it.
        with contextlib.suppress(aiohttp.ClientError):
            assert (await ask(fleet.http, child.url, LONG)).status in (500, 503)
        assert await exit_code(child) == 1
        assert not alive(core)

    async def test_that_is_slow_in_a_step_shows_the_age_of_the_step(self, fleet: Fleet) -> None:
        child = await armed(fleet, "core.step=delay:1500*1")
        asked = asyncio.create_task(ask(fleet.http, child.url, {**LONG, "max_tokens": 2}))
        ages = await step_ages(fleet, count=4, above_ms=400)
        assert ages == sorted(ages)
        assert (await asked).status == 200

    @pytest.mark.parametrize("busy", [False, True])
    async def test_that_hangs_shows_a_growing_age_while_the_server_lives_and_recovers(
        self, fleet: Fleet, busy: bool
    ) -> None:
        """Also if it stopped while it had nothing to do: then it no longer takes what it is sent."""
        child = await fleet.start_engine("e", "all", *SLOW)
        (core,) = child.core_pids()
        if busy:
            stream = asyncio.create_task(ask(fleet.http, child.url, {**LONG, "max_tokens": 100, "stream": True}))
            await running(fleet, 1)
        with stopped(core):
            told = {**fleet.auth, "x-triptych-deadline-ms": "1200"}
            asked = asyncio.create_task(ask(fleet.http, child.url, LONG, headers=told))
            ages = await step_ages(fleet, count=3, above_ms=250)
            assert ages == sorted(ages)
            assert ages[-1] - ages[0] >= 250
            async with fleet.http.get(child.url + "/livez") as answer:
                assert answer.status == 200
            check_clean_error(await asked, "deadline_exceeded")
        if busy:
            assert (await stream).finish_reason == "length"
        await fleet.settled("e")
        state = await fleet.state("e")
        assert state is not None
        assert state.load.step_age_ms == 0


async def step_ages(fleet: Fleet, *, count: int, above_ms: float) -> list[float]:
    """The ages of the first beats that tell an age over a bound."""
    ages: list[float] = []
    async with (
        asyncio.timeout(10),
        fleet.http.get(fleet.children["e"].url + "/instance/events", headers=fleet.auth) as answer,
    ):
        async for line in answer.content:
            event = json.loads(line)
            if event["type"] == "load" and event["load"]["step_age_ms"] > above_ms:
                ages.append(event["load"]["step_age_ms"])
            if len(ages) == count:
                break
    return ages


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class TestAServer:
    @pytest.mark.parametrize("hangs", [False, True])
    async def test_that_is_killed_takes_its_core_with_it_within_a_second(self, fleet: Fleet, hangs: bool) -> None:
        child = await fleet.start_engine("e", "all", *SLOW)
        (core,) = child.core_pids()
        asked = asyncio.create_task(ask(fleet.http, child.url, {**LONG, "stream": True}))
        await running(fleet, 1)
        if hangs:
            os.kill(core, signal.SIGSTOP)
        child.kill(signal.SIGKILL)
        await until(lambda: not alive(core), deadline_s=1.0)
        await asyncio.gather(asked, return_exceptions=True)

    async def test_that_is_told_to_end_finishes_its_streams(self, fleet: Fleet) -> None:
        child = await fleet.start_engine("e", "all", *SLOW)
        (core,) = child.core_pids()
        body = {**LONG, "max_tokens": 40, "stream": True}
        asked = [asyncio.create_task(ask(fleet.http, child.url, body)) for _ in range(3)]
        await running(fleet, 3)
        child.kill(signal.SIGTERM)
        await fleet.until(lambda: refuses(fleet, child), what="new work is refused", deadline_s=2)
        async with fleet.http.post(child.url + "/instance/drain", json={"cancel": True}, headers=fleet.auth) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "not_ready")
        for answer in await asyncio.gather(*asked):
            assert (answer.finish_reason, answer.error, answer.done) == ("length", None, True)
        assert await exit_code(child) == 0
        assert not alive(core)

    async def test_that_drains_too_long_ends_every_stream_with_one_error(self, fleet: Fleet) -> None:
        child = await fleet.start_engine("e", "all", *SLOW, "--drain-s", "0.3")
        asked = [
            asyncio.create_task(ask(fleet.http, child.url, {**LONG, "stream": stream})) for stream in (True, False)
        ]
        await running(fleet, 2)
        child.kill(signal.SIGTERM)
        for answer in await asyncio.gather(*asked):
            check_clean_error(answer, "not_ready")
        assert await exit_code(child, deadline_s=4) == 0

    async def test_that_is_told_to_end_waits_for_the_reader_of_its_lease(self, fleet: Fleet) -> None:
        child = await fleet.start_engine("e", "prefill", *SLOW, "--lease-ttl-ms", "20000")
        async with fleet.http.post(child.url + "/v1/completions", json=LEG, headers=fleet.auth) as answer:
            lease = (await answer.json())["kv_transfer_params"]["lease"]
        child.kill(signal.SIGTERM)
        await fleet.until(lambda: refuses(fleet, child), what="new work is refused", deadline_s=2)
        async with fleet.http.post(f"{child.url}/instance/leases/{lease}", headers=fleet.auth) as renewed:
            assert renewed.status == 200
        async with fleet.http.delete(f"{child.url}/instance/leases/{lease}", headers=fleet.auth) as released:
            assert released.status == 200
        assert await exit_code(child, deadline_s=5) == 0

    async def test_that_is_told_to_end_waits_for_a_lease_no_longer_than_its_life(self, fleet: Fleet) -> None:
        child = await fleet.start_engine("e", "prefill", *SLOW, "--lease-ttl-ms", "700")
        async with fleet.http.post(child.url + "/v1/completions", json=LEG, headers=fleet.auth) as answer:
            assert answer.status == 200
        began_s = time.monotonic()
        child.kill(signal.SIGTERM)
        assert await exit_code(child, deadline_s=5) == 0
        assert time.monotonic() - began_s > 0.4

    async def test_that_is_told_to_end_at_once_after_it_listens_drains_as_well(self, fleet: Fleet) -> None:
        child = await fleet.start_engine("e", "all", *SLOW, wait=False)
        child.kill(signal.SIGTERM)
        assert await exit_code(child, deadline_s=10) == 0


async def refuses(fleet: Fleet, child: Child) -> bool:
    async with fleet.http.post(child.url + "/v1/completions", json={**LONG, "max_tokens": 1}) as answer:
        return answer.status == 503
