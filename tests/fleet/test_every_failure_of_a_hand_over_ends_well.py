"""Each row of the hand-over's failure list: the fault is shown to have happened, then the right text or one
clean error follows in time, and no block stays behind (1 s after a release, the lease's TTL after a kill).

The lease TTL is 2 s in these tests.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from fakes.asking import Answer, ask
from fakes.fleet import Fleet, fleet_in
from triptych_contract.ids import random_id
from triptych_contract.instance import InstanceState

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

LEASE_TTL_S = 2.0
FREED_AFTER_RELEASE_S = 1.0 + 0.5
"""One second, and the beat by which the test sees it."""
FREED_AFTER_KILL_S = LEASE_TTL_S + 1.0
ARMED = "--enable-failpoints"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """One mixed instance that nothing happens to."""
    async with fleet_in(tmp_path_factory.mktemp("reference")) as fleet:
        await fleet.start_engine("reference", "mixed")
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """An empty fleet that ends with the test."""
    async with fleet_in(tmp_path_factory.mktemp("fleet")) as made:
        yield made


def body_of(name: str, **more: Any) -> dict[str, Any]:
    """A greedy request of about nine blocks whose prompt no other test shares."""
    prompt = f"{name} " + " ".join(f"{name[:3]}{i}" for i in range(45))
    return {"model": "sim", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}


async def expected(reference: Fleet, body: dict[str, Any]) -> str:
    """The text without any fault."""
    answer = await ask(reference.http, reference.children["reference"].url, body)
    assert answer.status == 200, answer
    return answer.text


async def start(fleet: Fleet, *engines: str, armed: dict[str, str] | None = None, router: tuple[str, ...] = ()) -> None:
    """Engines named `role-number`, some of them with failpoints, and a router."""

    async def one(name: str) -> None:
        points = (armed or {}).get(name)
        role = name.rsplit("-", 1)[0]
        if points is None:
            await fleet.start_engine(name, role)
        else:
            await fleet.start_engine(name, role, ARMED, env={"TRIPTYCH_FAILPOINTS": points})

    await asyncio.gather(*(one(name) for name in engines))
    await fleet.start_router(*router)


async def counted(fleet: Fleet, name: str) -> InstanceState:
    """The state of an instance that answers."""
    state = await fleet.state(name)
    assert state is not None
    return state


def check_right(answer: Answer, text: str) -> None:
    """The right text, once."""
    assert (answer.status, answer.error, answer.done, answer.text) == (200, None, True, text), answer
    assert answer.ends == 1


def check_clean_error(answer: Answer) -> None:
    """One OpenAI error without addresses or paths, before the stream or inside it."""
    assert answer.error is not None, answer
    assert answer.ends == 1, answer
    assert set(answer.error) == {"message", "type", "param", "code"}
    said = json.dumps(answer.error)
    assert "127.0.0.1" not in said
    assert "/" not in answer.error["message"]


# --- the producer dies ---------------------------------------------------------------------------------


async def test_a_producer_killed_before_the_pull_costs_a_recomputation(fleet: Fleet, reference: Fleet) -> None:
    """The decode instance waits before it pulls; in that time its producer is killed."""
    await start(fleet, "prefill-0", "decode-0", armed={"decode-0": "kv.before_pull=delay:1000"})
    body = body_of("before")
    text = await expected(reference, body)
    asked = asyncio.create_task(ask(fleet.http, fleet.router.url, body))

    async def pulls() -> bool:
        held = (await counted(fleet, "prefill-0")).load.leases
        return held == 1 and (await counted(fleet, "decode-0")).load.waiting == 1

    await fleet.until(pulls, what="the decode instance has room for the blocks and is about to pull them")
    fleet.children["prefill-0"].kill()
    assert await fleet.children["prefill-0"].process.wait() == -signal.SIGKILL
    check_right(await asked, text)
    state = (await fleet.settled("decode-0"))["decode-0"]
    assert state.load.handover.tokens_recomputed > 1
    assert state.load.handover.blocks_received == 0


async def test_a_producer_killed_during_the_pull_leaves_no_half_block(fleet: Fleet, reference: Fleet) -> None:
    """It dies after the first of several blocks."""
    await start(fleet, "prefill-0", "decode-0", armed={"prefill-0": "kv.sent_k_of_n=kill"})
    body = body_of("during")
    text = await expected(reference, body)
    check_right(await ask(fleet.http, fleet.router.url, body), text)
    assert await fleet.children["prefill-0"].process.wait() == -signal.SIGKILL
    state = (await fleet.settled("decode-0"))["decode-0"]
    assert state.load.handover.failed == 1
    assert state.load.handover.blocks_received == 0
    assert state.load.handover.tokens_recomputed > 1


async def test_a_producer_killed_after_the_pull_is_not_missed(fleet: Fleet, reference: Fleet) -> None:
    """The decode instance is held after its pull, and its producer killed, before the first token."""
    await start(fleet, "prefill-0", "decode-0", armed={"decode-0": "kv.after_pull=delay:600"})
    body = body_of("after", stream=True)
    text = await expected(reference, body)
    asked = asyncio.create_task(ask(fleet.http, fleet.router.url, body))

    async def sent() -> bool:
        return (await counted(fleet, "prefill-0")).load.handover.blocks_sent > 0

    await fleet.until(sent, what="blocks were sent")
    fleet.children["prefill-0"].kill()
    assert await fleet.children["prefill-0"].process.wait() == -signal.SIGKILL
    check_right(await asked, text)
    state = (await fleet.settled("decode-0"))["decode-0"]
    assert state.load.handover.tokens_recomputed == 1
    assert state.load.handover.blocks_received > 0


async def test_a_prefill_instance_that_dies_while_computing_is_replaced(fleet: Fleet, reference: Fleet) -> None:
    """A long prefill; its instance is killed in the middle of it."""
    slow = ("--sim-profile", "0.001,0.003,0,0,0")
    await asyncio.gather(*(fleet.start_engine(f"prefill-{i}", "prefill", *slow) for i in range(2)))
    await fleet.start_engine("decode-0", "decode")
    await fleet.start_router()
    body = body_of("computing", stream=True)
    text = await expected(reference, body)
    asked = asyncio.create_task(ask(fleet.http, fleet.router.url, body))
    computing: list[str] = []

    async def computes() -> bool:
        for name in ("prefill-0", "prefill-1"):
            load = (await counted(fleet, name)).load
            if load.running + load.waiting:
                computing.append(name)
        return bool(computing)

    await fleet.until(computes, what="a prefill instance computes")
    fleet.children[computing[0]].kill()
    assert await fleet.children[computing[0]].process.wait() == -signal.SIGKILL
    check_right(await asked, text)
    await fleet.settled()


async def test_a_prefill_instance_that_hangs_is_left_alone(fleet: Fleet, reference: Fleet) -> None:
    """Stopped, not dead: connections stay open, beats stop; the leg goes elsewhere, a late answer is dropped."""
    await start(fleet, "prefill-0", "prefill-1", "decode-0")
    body = body_of("hangs")
    text = await expected(reference, body)
    stopped = fleet.children["prefill-0"]
    stopped.kill(signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(ask(fleet.http, fleet.router.url, body, deadline_s=20) for _ in range(4)))
        for answer in answers:
            check_right(answer, text)
    finally:
        stopped.kill(signal.SIGCONT)
    await fleet.settled(deadline_s=FREED_AFTER_KILL_S + 5)


# --- the consumer dies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["kv.before_pull", "kv.after_pull"])
async def test_a_consumer_killed_around_its_pull_is_replaced(fleet: Fleet, reference: Fleet, point: str) -> None:
    """The next decode instance takes the same ticket, or the prefill leg is made again."""
    await start(fleet, "prefill-0", "decode-0", armed={"decode-0": f"{point}=kill"})
    body = body_of("consumer" + point[3:6])
    text = await expected(reference, body)
    asked = asyncio.create_task(ask(fleet.http, fleet.router.url, body))
    assert await asyncio.wait_for(fleet.children["decode-0"].process.wait(), 10) == -signal.SIGKILL
    await fleet.start_engine("decode-1", "decode")
    check_right(await asked, text)
    await fleet.settled("prefill-0", "decode-1", deadline_s=FREED_AFTER_KILL_S)


async def test_a_decode_instance_that_dies_in_the_stream_gives_one_clean_error(fleet: Fleet) -> None:
    """After the first event: one error event, then the end."""
    await fleet.start_engine("prefill-0", "prefill")
    await fleet.start_engine("decode-0", "decode", "--sim-profile", "0.02,0,0,0,0")
    await fleet.start_router()
    body = body_of("midstream", stream=True, max_tokens=2000)
    asked = asyncio.create_task(ask(fleet.http, fleet.router.url, body, deadline_s=20))

    async def decodes() -> bool:
        return (await counted(fleet, "decode-0")).load.step > 5

    await fleet.until(decodes, what="tokens flow")
    fleet.children["decode-0"].kill()
    answer = await asked
    assert answer.status == 200
    assert answer.text
    assert answer.done
    check_clean_error(answer)
    await fleet.settled("prefill-0", deadline_s=FREED_AFTER_KILL_S)


# --- the transfer goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kv.corrupt_block", "kv.drop_block", "kv.truncate"])
async def test_a_block_that_arrives_wrong_discards_the_transfer(fleet: Fleet, reference: Fleet, fault: str) -> None:
    """Corrupted, missing or cut: none of the transfer is used, and the prompt is computed again."""
    await start(fleet, "prefill-0", "decode-0", armed={"prefill-0": f"{fault}=corrupt*1"})
    body = body_of(fault[3:])
    text = await expected(reference, body)
    check_right(await ask(fleet.http, fleet.router.url, body), text)
    states = await fleet.settled(deadline_s=FREED_AFTER_RELEASE_S)
    assert states["decode-0"].load.handover.failed == 1
    assert states["decode-0"].load.handover.blocks_received == 0
    assert states["decode-0"].load.handover.tokens_recomputed > 1
    again = body_of(fault[3:] + "again")
    check_right(await ask(fleet.http, fleet.router.url, again), await expected(reference, again))
    states = await fleet.settled(deadline_s=FREED_AFTER_RELEASE_S)
    assert states["decode-0"].load.handover.failed == 1
    assert states["decode-0"].load.handover.blocks_received > 0


async def test_blocks_that_come_too_late_are_not_waited_for(fleet: Fleet, reference: Fleet) -> None:
    """The producer stalls for longer than the pull may take."""
    await start(fleet, "prefill-0", "decode-0", armed={"prefill-0": "kv.delay=delay:20000*1"})
    body = body_of("late")
    text = await expected(reference, body)
    began = time.monotonic()
    check_right(await ask(fleet.http, fleet.router.url, body), text)
    assert time.monotonic() - began < 15
    states = await fleet.settled(deadline_s=FREED_AFTER_KILL_S)
    assert states["decode-0"].load.handover.failed == 1


# --- leases and tickets --------------------------------------------------------------------------------


async def prefill_ticket(fleet: Fleet, body: dict[str, Any], name: str = "prefill-0") -> dict[str, Any]:
    """A ticket, as the router gets it."""
    leg = {**body, "kv_transfer_params": {"do_remote_decode": True}}
    url = f"{fleet.children[name].url}/v1/completions"
    async with fleet.http.post(url, json=leg, headers=fleet.auth) as answer:
        assert answer.status == 200, await answer.text()
        ticket: dict[str, Any] = (await answer.json())["kv_transfer_params"]
        return ticket


async def decode_with(fleet: Fleet, body: dict[str, Any], ticket: dict[str, Any], **headers: str) -> Answer:
    """A decode leg, as the router makes it."""
    leg = {**body, "kv_transfer_params": ticket}
    return await ask(fleet.http, fleet.children["decode-0"].url, leg, headers={**fleet.auth, **headers})


async def start_pair(fleet: Fleet) -> None:
    """A prefill and a decode instance, no router."""
    await asyncio.gather(*(fleet.start_engine(f"{role}-0", role) for role in ("prefill", "decode")))


async def test_a_lease_that_has_expired_costs_a_recomputation(fleet: Fleet, reference: Fleet) -> None:
    """The decode leg comes after the TTL; by then the producer has freed the blocks by itself."""
    await start_pair(fleet)
    body = body_of("expired")
    ticket = await prefill_ticket(fleet, body)
    assert (await counted(fleet, "prefill-0")).load.blocks.in_transfer > 0
    await fleet.settled("prefill-0", deadline_s=FREED_AFTER_KILL_S)
    check_right(await decode_with(fleet, body, ticket), await expected(reference, body))
    assert (await fleet.settled("decode-0"))["decode-0"].load.handover.tokens_recomputed > 1


async def test_a_released_lease_frees_its_blocks_within_a_second(fleet: Fleet) -> None:
    """By the instance API, twice: the second time nothing happens."""
    await start_pair(fleet)
    ticket = await prefill_ticket(fleet, body_of("released"))
    url = f"{fleet.children['prefill-0'].url}/instance/leases/{ticket['lease']}"
    for _ in range(2):
        async with fleet.http.delete(url, headers=fleet.auth) as answer:
            assert answer.status == 200
    await fleet.settled("prefill-0", deadline_s=FREED_AFTER_RELEASE_S)


async def test_a_renewed_lease_outlives_its_ttl(fleet: Fleet, reference: Fleet) -> None:
    """As the router does while it looks for a decode instance."""
    await start_pair(fleet)
    body = body_of("renewed")
    ticket = await prefill_ticket(fleet, body)
    url = f"{fleet.children['prefill-0'].url}/instance/leases/{ticket['lease']}"
    until = time.monotonic() + LEASE_TTL_S * 1.5
    while time.monotonic() < until:
        async with fleet.http.post(url, headers=fleet.auth) as answer:
            assert answer.status == 200
        await asyncio.sleep(LEASE_TTL_S / 6)
    check_right(await decode_with(fleet, body, ticket), await expected(reference, body))
    assert (await fleet.settled())["decode-0"].load.handover.tokens_recomputed == 1


async def test_a_forged_lease_moves_no_block(fleet: Fleet, reference: Fleet) -> None:
    """A well-formed ticket with a lease that nobody granted: refused by the producer and counted."""
    await start_pair(fleet)
    body = body_of("forged")
    ticket = await prefill_ticket(fleet, body)
    answer = await decode_with(fleet, body, {**ticket, "lease": random_id()})
    if answer.error is None:
        check_right(answer, await expected(reference, body))
    else:
        assert answer.status in (401, 403, 409)
        check_clean_error(answer)
    producer, consumer = await counted(fleet, "prefill-0"), await counted(fleet, "decode-0")
    assert producer.load.handover.blocks_sent == consumer.load.handover.blocks_received == 0
    assert producer.load.handover.refused == 1
    await fleet.settled(deadline_s=FREED_AFTER_KILL_S)


@pytest.mark.parametrize(
    "change",
    [{"remote_host": "127.0.0.2"}, {"remote_engine_id": "somebody"}, {"fingerprint": "0" * 16}],
    ids=["address not in discovery", "unknown engine", "another layout"],
)
async def test_a_foreign_ticket_is_refused_and_nothing_is_dialled(fleet: Fleet, change: dict[str, Any]) -> None:
    """The address in a body is dialled only if discovery lists it."""
    await start_pair(fleet)
    dialled = asyncio.Event()

    async def trap(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        writer.close()

    server = await asyncio.start_server(trap, "127.0.0.2", 0)
    body = body_of("foreign")
    ticket = await prefill_ticket(fleet, body)
    if "remote_host" in change:
        change = {**change, "remote_port": server.sockets[0].getsockname()[1]}
    answer = await decode_with(fleet, body, {**ticket, **change})
    assert answer.status == 409
    check_clean_error(answer)
    assert (await counted(fleet, "decode-0")).load.handover.refused == 1
    assert not dialled.is_set()
    server.close()
    await server.wait_closed()
    await fleet.settled(deadline_s=FREED_AFTER_KILL_S)


@pytest.mark.parametrize(("token", "status"), [(None, {401, 403}), ("0" * 48, {401, 403})], ids=["none", "wrong"])
async def test_a_hand_over_needs_the_service_token(fleet: Fleet, token: str | None, status: set[int]) -> None:
    """On both legs and on the instance API."""
    await start_pair(fleet)
    body = body_of("token")
    ticket = await prefill_ticket(fleet, body)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    for leg in ({"do_remote_decode": True}, ticket):
        url = fleet.children["decode-0"].url
        answer = await ask(fleet.http, url, {**body, "kv_transfer_params": leg}, headers=headers)
        assert answer.status in status
        check_clean_error(answer)
    for path in ("/instance", "/instance/events"):
        async with fleet.http.get(fleet.children["decode-0"].url + path, headers=headers) as response:
            assert response.status in status
    async with fleet.http.post(
        fleet.children["decode-0"].url + "/instance/role", json={"role": "mixed", "epoch": 9}, headers=headers
    ) as response:
        assert response.status in status
    await fleet.settled(deadline_s=FREED_AFTER_KILL_S)


async def test_a_stale_epoch_is_moved_at_the_engine_and_unseen_by_the_client(fleet: Fleet, reference: Fleet) -> None:
    """The engine answers 409; through the router, during a change of role, the client sees the text."""
    await start(fleet, "prefill-0", "decode-0", "mixed-0")
    body = body_of("epoch")
    moved = await ask(
        fleet.http, fleet.children["decode-0"].url, body, headers={**fleet.auth, "x-triptych-epoch": "77"}
    )
    assert moved.status == 409
    assert moved.error is not None
    assert moved.error["code"] == "moved"
    text = await expected(reference, body)
    asked = [asyncio.create_task(ask(fleet.http, fleet.router.url, body)) for _ in range(10)]
    for epoch, role in enumerate(("decode", "prefill", "decode", "prefill"), start=2):
        async with fleet.http.post(
            f"{fleet.children['prefill-0'].url}/instance/role",
            json={"role": role, "epoch": epoch},
            headers=fleet.auth,
        ) as response:
            assert response.status == 200
        asked += [asyncio.create_task(ask(fleet.http, fleet.router.url, body)) for _ in range(10)]
    for answer in await asyncio.gather(*asked):
        check_right(answer, text)
    await fleet.settled()


# --- refusals, waits and deadlines ---------------------------------------------------------------------


async def test_a_draining_prefill_instance_is_passed_over(fleet: Fleet, reference: Fleet) -> None:
    """New legs go to the other one."""
    await start(fleet, "prefill-0", "prefill-1", "decode-0")
    async with fleet.http.post(
        f"{fleet.children['prefill-0'].url}/instance/drain", json={}, headers=fleet.auth
    ) as response:
        assert response.status == 200
    for i in range(4):
        body = body_of(f"drain{i}")
        check_right(await ask(fleet.http, fleet.router.url, body), await expected(reference, body))
    states = await fleet.settled("prefill-1", "decode-0")
    assert states["prefill-1"].load.handover.blocks_sent > 0


async def test_a_lease_is_renewed_until_the_deadline_when_no_decode_instance_comes(fleet: Fleet) -> None:
    """The only decode instance is killed before the pull; the wait ends with the request, not with the lease."""
    await start(
        fleet,
        "prefill-0",
        "decode-0",
        armed={"decode-0": "kv.before_pull=kill"},
        router=("--request-timeout-s", "6", "--queue-timeout-s", "6"),
    )
    began = time.monotonic()
    answer = await ask(fleet.http, fleet.router.url, body_of("waits"), deadline_s=20)
    assert await fleet.children["decode-0"].process.wait() == -signal.SIGKILL
    check_clean_error(answer)
    assert answer.status in (502, 503, 504)
    assert time.monotonic() - began < 8
    await fleet.settled("prefill-0", deadline_s=FREED_AFTER_RELEASE_S)


async def test_a_missing_stage_is_refused_within_two_seconds(fleet: Fleet) -> None:
    """No decode instance at all: 503 with a time to come again."""
    await start(fleet, "prefill-0", "decode-0")
    fleet.children["decode-0"].kill()
    await fleet.children["decode-0"].process.wait()

    async def gone() -> bool:
        async with fleet.http.get(f"{fleet.router.url}/metrics") as scraped:
            text = await scraped.text()
        return 'role="decode"' not in text.split("triptych_router_instances{", 1)[-1].split("# HELP", 1)[0]

    await fleet.until(gone, what="the router knows", deadline_s=3)
    began = time.monotonic()
    answer = await ask(fleet.http, fleet.router.url, body_of("missing"), deadline_s=20)
    assert time.monotonic() - began < 2
    assert answer.status == 503
    assert "retry-after" in {name.lower() for name in answer.headers}
    check_clean_error(answer)
    await fleet.settled("prefill-0", deadline_s=FREED_AFTER_KILL_S)


async def test_a_router_killed_mid_stream_leaves_nothing_on_the_engines(fleet: Fleet) -> None:
    """Legs are cancelled within a second, leases end by their TTL."""
    await fleet.start_engine("prefill-0", "prefill")
    await fleet.start_engine("decode-0", "decode", "--sim-profile", "0.02,0,0,0,0")
    await fleet.start_router()
    body = body_of("router", stream=True, max_tokens=2000)
    asked = [asyncio.create_task(ask(fleet.http, fleet.router.url, body, deadline_s=20)) for _ in range(3)]

    async def decodes() -> bool:
        return (await counted(fleet, "decode-0")).load.running == 3

    await fleet.until(decodes, what="streams run")
    fleet.router.kill()
    await asyncio.gather(*asked, return_exceptions=True)
    await fleet.settled("decode-0", deadline_s=FREED_AFTER_RELEASE_S)
    await fleet.settled("prefill-0", deadline_s=FREED_AFTER_KILL_S)
