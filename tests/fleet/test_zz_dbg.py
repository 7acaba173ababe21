"""A client that vanishes at any moment of the prefill leg leaves no block behind for longer than a second.

The hard moment is the one in which the prefill instance has answered and the router has not read the answer: only
the lease's id, which the router has chosen, tells it what to give back. Leases live for ten minutes here, so that
one which is lost stays lost and shows.
"""

import asyncio
import contextlib
import json
import random
import signal
import time

import pytest

from fakes.asking import ask
from fakes.fleet import Fleet

pytestmark = pytest.mark.process

ROUNDS = 100
FREED_S = 1.0
TTL = ("--lease-ttl-ms", "600000")
PROFILE = ("--sim-profile", "0.002,0.0001,0,0,0")
BODY = {"model": "sim", "max_tokens": 200, "temperature": 0, "ignore_eos": True}


async def holds_nothing(fleet: Fleet, name: str) -> bool:
    """No block in transfer and no lease."""
    state = await fleet.state(name)
    return state is not None and state.load.blocks.in_transfer == 0 and state.load.leases == 0


async def vanish_after(fleet: Fleet, prompt: str, seconds: float, *, unread: bool) -> None:
    """Ask, leave after a while; `unread` keeps the router from reading anything while the client leaves."""
    body = json.dumps({**BODY, "prompt": prompt}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    _, writer = await asyncio.open_connection("127.0.0.1", fleet.router.http_port)
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    await asyncio.sleep(seconds)
    if not unread:
        writer.transport.abort()
        return
    fleet.router.kill(signal.SIGSTOP)
    try:
        writer.transport.abort()
        with contextlib.suppress(AssertionError):  # it vanished before the leg began, or after it was over
            await fleet.until(lambda: _granted(fleet), what="the prefill instance has answered", deadline_s=0.3)
    finally:
        fleet.router.kill(signal.SIGCONT)


async def _granted(fleet: Fleet) -> bool:
    return not await holds_nothing(fleet, "p")


async def test_a_client_that_vanishes_during_the_prefill_leg_frees_its_blocks_within_a_second(fleet: Fleet) -> None:
    await asyncio.gather(
        fleet.start_engine("p", "prefill", *PROFILE, *TTL), fleet.start_engine("d", "decode", *PROFILE, *TTL)
    )
    await fleet.start_router()
    source = random.Random(20)
    words = ["red", "green", "blue", "seven"]
    began_s = time.monotonic()
    assert (await ask(fleet.http, fleet.router.url, {**BODY, "prompt": "once " * 60, "max_tokens": 1})).status == 200
    leg_s = time.monotonic() - began_s
    granted = 0
    for number in range(ROUNDS):
        prompt = " ".join([str(number), *(source.choice(words) for _ in range(60))])
        await vanish_after(fleet, prompt, source.random() * leg_s, unread=number % 4 == 0)
        granted += await _granted(fleet)
        await fleet.until(lambda: holds_nothing(fleet, "p"), what="its blocks are free", deadline_s=FREED_S)
    assert granted > 0, "some clients have left while the prefill instance held their blocks"
    for _ in range(40):
        st = await fleet.state("d")
        print("T", round(time.monotonic()%100,2), st.load.running, st.load.waiting, st.load.leases, st.load.streams, st.load.waiting_tokens, st.load.context_tokens, st.load.blocks, st.load.step)
        await asyncio.sleep(0.1)
    states = await fleet.settled(deadline_s=FREED_S)
    assert set(states) == {"p", "d"}
