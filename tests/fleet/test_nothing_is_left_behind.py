"""After any mix of ends (complete, stopped, cancelled, cut off, out of time) every process holds nothing."""

import asyncio
import contextlib
import os
import random
from typing import Any

import aiohttp
import pytest

from fakes.asking import ask, vanish
from fakes.fleet import Child, Fleet

pytestmark = pytest.mark.process

CONCURRENCY = 24
PROFILE = ("--sim-profile", "0.0005,0.00001,0,0.00001,0")


def request(source: random.Random) -> tuple[str, dict[str, Any]]:
    """A random request: chat or completion, long or short, streamed or not, sampled or greedy, stopped or not."""
    words = " ".join(source.choice(["red", "green", "blue", "seven"]) for _ in range(source.randrange(1, 150)))
    body: dict[str, Any] = {
        "model": "sim",
        "max_tokens": source.randrange(1, 60),
        "temperature": source.choice([0, 0.7, 1.0]),
        "stream": source.random() < 0.6,
    }
    if source.random() < 0.3:
        body["stop"] = [source.choice("abcdefgh")]
    if source.random() < 0.2:
        body["n"] = 2
    if source.random() < 0.5:
        return "/v1/completions", {**body, "prompt": words}
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": words}]}


async def one(fleet: Fleet, source: random.Random, ends: dict[str, int]) -> None:
    """One request with a random fate."""
    path, body = request(source)
    fate = source.random()
    if fate < 0.25:
        sent = source.randrange(1, 200) if fate < 0.05 else None
        await vanish(fleet.router.http_port, body, path=path, sent=sent, read=source.randrange(0, 4000))
        ends["vanished"] += 1
    elif fate < 0.40:
        headers = {**fleet.auth, "x-triptych-deadline-ms": str(source.randrange(1, 60))}
        target = fleet.children[source.choice(["decode-0", "mixed-0"])]
        answer = await ask(fleet.http, target.url, body, path=path, headers=headers)
        assert answer.ends == 1 or answer.error, answer
        ends["deadline" if answer.error else "complete"] += 1
    elif fate < 0.50:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(source.random() * 0.2):
                await ask(fleet.http, fleet.router.url, body, path=path)
        ends["cancelled"] += 1
    else:
        answer = await ask(fleet.http, fleet.router.url, body, path=path)
        assert (answer.status, answer.error, answer.done) == (200, None, True), answer
        ends["complete"] += 1


def descriptors(child: Child) -> dict[int, int]:
    """Open descriptors of a program and of its core, by pid."""
    pids = [child.pid, *child.core_pids()]
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}


async def gauge(session: aiohttp.ClientSession, child: Child, name: str) -> float:
    """The sum of one metric over its labels."""
    async with session.get(f"{child.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


async def storm(fleet: Fleet, count: int, seed: int) -> dict[str, int]:
    """Many requests, a bounded number at once."""
    source = random.Random(seed)
    ends = dict.fromkeys(("complete", "vanished", "deadline", "cancelled"), 0)
    gate = asyncio.Semaphore(CONCURRENCY)

    async def gated(own: random.Random) -> None:
        async with gate:
            await one(fleet, own, ends)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(gated(random.Random(source.getrandbits(64))))
    return ends


async def check_storm(fleet: Fleet, count: int) -> None:
    """Start three engines and a router, storm them, and compare what is left with what was there before."""
    names = ("prefill-0", "decode-0", "mixed-0")
    await asyncio.gather(*(fleet.start_engine(name, name.split("-")[0], *PROFILE) for name in names))
    await fleet.start_router()
    everyone = [fleet.children[name] for name in (*names, "router")]
    await storm(fleet, 40, seed=1)
    await fleet.settled()
    await fleet.http.close()
    fleet.session = None
    before = {child.name: await calm(fleet, child, None) for child in everyone}

    ends = await storm(fleet, count, seed=2)

    assert all(ends.values()), f"every kind of end has to occur: {ends}"
    states = await fleet.settled()
    assert states["decode-0"].load.handover.requests > 0
    await fleet.http.close()
    fleet.session = None
    for child in everyone:
        assert await calm(fleet, child, before[child.name]) == before[child.name], child.name


async def calm(fleet: Fleet, child: Child, expected: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Descriptors, tasks and requests in flight, once they are down to the expected or stand still."""
    seen: list[tuple[Any, ...]] = []
    for _ in range(100):
        async with aiohttp.ClientSession() as session:
            tasks = await gauge(session, child, "triptych_process_tasks")
            in_flight = await gauge(session, child, "triptych_router_requests_in_flight")
        seen.append((descriptors(child), tasks, in_flight))
        still = len(seen) > 10 and len({str(s) for s in seen[-10:]}) == 1
        if seen[-1] == expected or (expected is None and still):
            break
        await asyncio.sleep(0.1)
    return seen[-1]


async def test_a_thousand_requests_of_every_fate_leave_no_block_task_or_descriptor(fleet: Fleet) -> None:
    """Short form; the long one asks twenty times as many."""
    await check_storm(fleet, 1000)


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_twenty_thousand_requests_of_every_fate_leave_no_block_task_or_descriptor(fleet: Fleet) -> None:
    """The same, long enough for slow leaks."""
    await check_storm(fleet, 20_000)
