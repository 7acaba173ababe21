"""Bounds and manners of the KV link: versions, unknown frames, number of links, idle links, full tables."""

import asyncio
import contextlib
import socket

import msgspec
import pytest

from fakes.kv_nodes import LAYOUT, TOKEN, grant, node, pair, ready, until, wanted
from fakes.raw_links import ask, greeted
from fakes.tcp_proxy import Harm, TcpProxy
from triptych_contract.clock import ManualClock
from triptych_contract.errors import HandoverRefused, Overloaded
from triptych_contract.handover import Hello, LinkClass, Refused, Renew, Renewed, Taken, Welcome
from triptych_contract.instance import InstanceRecord
from triptych_contract.registry import MemoryRegistry
from triptych_engine.messages import Inbox, ReleaseLease
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.holdings import Holdings
from triptych_engine.transfer.leases import MAX_LEASES, KVHolding
from triptych_engine.transfer.link_server import MAX_LINKS
from triptych_engine.transfer.tasks import Tasks


async def first_answer(port: int, frame: object) -> object:
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return await ask(sock, frame)


def hello(**changes: object) -> Hello:
    message = ready(LAYOUT)
    link_class = LinkClass("tcp", LAYOUT.describe(), message.kv_dtype, message.fingerprint)
    return msgspec.structs.replace(Hello(TOKEN, "raw", link_class), **changes)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(hello(version=99), "handover_refused", id="another version"),
        pytest.param(hello(token=TOKEN[:-1]), "invalid_api_key", id="part of the token"),
        pytest.param(hello(token=""), "invalid_api_key", id="no token"),
        pytest.param(Taken("1" * 32), "invalid_api_key", id="no greeting"),
    ],
)
async def test_a_first_frame_that_is_no_sound_greeting_is_refused(frame: object, code: str) -> None:
    async with pair() as (p, _, _registry):
        grant(p)
        refused = await first_answer(p.port, frame)
        assert isinstance(refused, Refused)
        assert refused.code == code
        assert (p.handover.leases, p.handover.counts().refused) == (1, 1)


async def test_a_greeting_over_its_bound_is_closed() -> None:
    async with pair() as (p, _, _registry):
        assert await first_answer(p.port, hello(token="x" * 20_000)) is None


async def test_a_frame_that_no_producer_expects_is_refused_and_the_link_lives_on() -> None:
    async with pair() as (p, _, _registry):
        ticket = grant(p)
        async with greeted(p, LAYOUT) as link:
            refused = await ask(link, Welcome("raw"))
            assert isinstance(refused, Refused)
            assert refused.code == "invalid_value"
            assert await ask(link, Renew(ticket.lease)) == Renewed(ticket.lease, 2000)


async def test_links_over_the_bound_are_closed_and_the_others_serve() -> None:
    async with pair() as (p, _, _registry), contextlib.AsyncExitStack() as links:
        ticket = grant(p)
        first = await links.enter_async_context(greeted(p, LAYOUT))
        for _ in range(MAX_LINKS - 1):
            await links.enter_async_context(greeted(p, LAYOUT))
        with pytest.raises(AssertionError):
            await links.enter_async_context(greeted(p, LAYOUT))
        assert p.handover.counts().refused == 1
        assert isinstance(await ask(first, Renew(ticket.lease)), Renewed)


async def test_idle_links_are_used_again_until_they_are_old() -> None:
    clock = ManualClock()
    registry = MemoryRegistry()
    async with node("p", registry) as p, node("d", registry, clock=clock) as d, TcpProxy(p.port, Harm()) as proxy:
        await registry.register(InstanceRecord("p", "0" * 32, "default", "127.0.0.1", 1, proxy.port))
        for number in range(3):
            ticket = msgspec.structs.replace(grant(p, lease=f"{number:032x}"), remote_port=proxy.port)
            assert (await d.handover.pull(ticket, wanted(ticket))).ok
            await until(lambda: p.handover.leases == 0)
        assert proxy.connections == 1
        clock.advance(100.0)
        ticket = msgspec.structs.replace(grant(p), remote_port=proxy.port)
        assert (await d.handover.pull(ticket, wanted(ticket))).ok
        assert proxy.connections == 2


async def test_renewing_ends_when_the_lease_is_gone() -> None:
    tasks = len(asyncio.all_tasks())
    async with pair(ttl_ms=120) as (p, d, _):
        ticket = grant(p)
        before = len(asyncio.all_tasks())
        await d.handover.check(ticket)
        assert len(asyncio.all_tasks()) == before + 1
        p.handover.release(ticket.lease)
        await until(lambda: p.handover.counts().refused == 1)
    assert len(asyncio.all_tasks()) == tasks


async def test_unreadable_discovery_is_a_clean_refusal() -> None:
    class Broken(MemoryRegistry):
        async def snapshot(self) -> tuple[InstanceRecord, ...]:
            raise OSError("no such place")

    async with node("p", MemoryRegistry()) as p, node("d", None) as d:
        assert d.handover.link_class == p.handover.link_class
        async with contextlib.AsyncExitStack() as stack:
            blind = await stack.enter_async_context(node("b", Broken()))
            with pytest.raises(HandoverRefused, match="Discovery"):
                await blind.handover.check(grant(p))


def test_a_full_table_lets_the_core_free_the_blocks_and_unpins_embeddings() -> None:
    told: list[Inbox] = []
    store = EmbeddingStore(capacity_bytes=8)
    store.put(b"a", b"12345678", count=1)
    holdings = Holdings(clock=ManualClock(), ttl_ms=1000, store=store, core_send=told.append)
    for number in range(MAX_LEASES):
        holdings.grant_kv(str(number), KVHolding((), (), 0))
    with pytest.raises(Overloaded):
        holdings.grant_kv("over", KVHolding((), (), 0))
    assert told == [ReleaseLease("over")]
    with pytest.raises(Overloaded):
        holdings.grant_embeddings("over", [b"a"])
    assert store.put(b"b", b"12345678", count=1)


def test_an_embedding_lease_that_expires_unpins_and_tells_the_core_nothing() -> None:
    told: list[Inbox] = []
    clock = ManualClock()
    store = EmbeddingStore(capacity_bytes=8)
    store.put(b"a", b"12345678", count=1)
    holdings = Holdings(clock=clock, ttl_ms=1000, store=store, core_send=told.append)
    holdings.grant_embeddings("lease", [b"a"])
    assert not store.put(b"b", b"12345678", count=1)
    clock.advance(1.0)
    assert holdings.expire() == 1
    assert store.put(b"b", b"12345678", count=1)
    assert told == []


async def test_an_owner_of_tasks_keeps_its_bound_and_outlives_failures(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("on purpose")

    tasks = Tasks(limit=1)
    assert tasks.start(fail(), name="first") is not None
    assert tasks.start(fail(), name="second") is None
    await until(lambda: len(tasks) == 0)
    assert "first" in caplog.text
    await tasks.close()
