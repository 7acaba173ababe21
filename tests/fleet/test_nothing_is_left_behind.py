"""After any mix of ends (complete, stopped, cancelled, cut off, out of time) every process holds nothing."""

import asyncio
import contextlib
import os
import random
from typing import Any, NamedTuple

import aiohttp
import pytest

from fakes.asking import ask, vanish
from fakes.fleet import Child, Fleet

pytestmark = pytest.mark.process

CONCURRENCY = 24
REST_SAMPLES = 36
"""Half a second apart: longer together than any program keeps an idle HTTP connection."""
IDLE_LINKS = 4
"""KV links that a consumer may keep to a producer, each a descriptor and a task there."""
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


class Held(NamedTuple):
    """What a program holds: descriptors of it and of its core, tasks, requests in flight."""

    descriptors: tuple[int, ...]
    tasks: int
    in_flight: int


def descriptors(child: Child) -> tuple[int, ...]:
    """Open descriptors of a program and of its core."""
    return tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in (child.pid, *child.core_pids()))


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
    before = await all_at_rest(everyone)

    ends = await storm(fleet, count, seed=2)

    assert all(ends.values()), f"every kind of end has to occur: {ends}"
    states = await fleet.settled()
    assert states["decode-0"].load.handover.requests > 0
    await fleet.http.close()
    fleet.session = None
    after = await all_at_rest(everyone)
    for name, left in after.items():
        assert left.in_flight == 0
        assert left.tasks <= before[name].tasks + IDLE_LINKS, name
        for now, then in zip(left.descriptors, before[name].descriptors, strict=True):
            assert now <= then + IDLE_LINKS, name


async def held(session: aiohttp.ClientSession, child: Child) -> Held:
    """What a program holds now, the connection of this question included."""
    tasks = [await gauge(session, child, f"triptych_{program}_tasks") for program in ("engine", "router")]
    in_flight = await gauge(session, child, "triptych_router_requests_in_flight")
    return Held(descriptors(child), int(sum(tasks)), int(in_flight))


async def at_rest(child: Child) -> Held:
    """What a program holds when it has stood still for longer than it keeps an idle connection."""
    async with aiohttp.ClientSession() as session:
        seen = [await held(session, child)]
        while len(seen) < REST_SAMPLES or len(set(seen[-REST_SAMPLES:])) > 1:
            assert len(seen) < 5 * REST_SAMPLES, f"{child.name} does not come to rest: {seen[-REST_SAMPLES:]}"
            await asyncio.sleep(0.5)
            seen.append(await held(session, child))
        return seen[-1]


async def all_at_rest(children: list[Child]) -> dict[str, Held]:
    """What each program holds at rest, by name."""
    found = await asyncio.gather(*map(at_rest, children))
    return {child.name: one for child, one in zip(children, found, strict=True)}


async def test_a_thousand_requests_of_every_fate_leave_no_block_task_or_descriptor(fleet: Fleet) -> None:
    """Short form; the long one asks twenty times as many."""
    await check_storm(fleet, 1000)


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_twenty_thousand_requests_of_every_fate_leave_no_block_task_or_descriptor(fleet: Fleet) -> None:
    """The same, long enough for slow leaks."""
    await check_storm(fleet, 20_000)
