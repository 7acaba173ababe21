"""Whatever harms a transfer on its way, none of its blocks is used and everything is free afterwards."""

import asyncio

import msgspec
import pytest

from fakes.kv_nodes import Node, descriptors, detour, grant, node, pair, until, wanted
from fakes.raw_links import as_wanted, greeted, send
from fakes.tcp_proxy import Harm, TcpProxy
from triptych_contract.handover import Pull, Released, Welcome
from triptych_contract.registry import MemoryRegistry
from triptych_engine import failpoints
from triptych_engine.kv.layout import KVLayout
from triptych_engine.messages import PullEnded

WELCOME_BYTES = 4 + len(msgspec.msgpack.encode(Welcome("p")))
BIG = KVLayout(num_blocks=26, segments=4, block_tokens=8, token_bytes=64 * 1024)
"""Twelve blocks of two megabytes are more than the buffers of all sockets take while the consumer does not read."""
BIG_BLOCKS = tuple(range(1, 13))
BIG_TOKENS = 96


async def pulled_through(harm: Harm, *, deadline_s: float | None = None, tokens: int = 24) -> tuple[PullEnded, Node]:
    async with pair() as (p, d, registry), TcpProxy(p.port, harm) as proxy:
        ticket = await detour(grant(p, tokens=tokens), registry, proxy)
        ended = await d.handover.pull(ticket, wanted(ticket), deadline_s)
        harm.flip_at = harm.cut_after = harm.hold_after = None
        harm.drop = range(0)
        await until(lambda: p.handover.leases == 0)
        return ended, d


@pytest.mark.parametrize("tokens", [pytest.param(24, id="full blocks"), pytest.param(4, id="a tail")])
@pytest.mark.parametrize("back", [9, 8, 1, 200])
async def test_one_flipped_bit_in_block_or_checksum_discards_all(tokens: int, back: int) -> None:
    sent = await bytes_of_a_transfer(tokens)
    ended, d = await pulled_through(Harm(flip_at=sent - back), tokens=tokens)
    assert ended == PullEnded("own", ok=False, reason="checksum")
    assert d.handover.failures()["checksum"] == 1
    assert d.handover.counts().blocks_received == 0


async def test_a_cut_at_any_place_discards_all() -> None:
    sent = await bytes_of_a_transfer(24)
    for cut in (WELCOME_BYTES + 1, sent // 3, sent // 2, sent - 9, sent - 1):
        ended, d = await pulled_through(Harm(cut_after=cut))
        assert (ended.ok, ended.received, ended.reason) == (False, (), "short")
        assert d.handover.failures()["short"] == 1


async def test_a_cut_before_the_welcome_is_an_unreachable_producer() -> None:
    ended, _ = await pulled_through(Harm(cut_after=2))
    assert ended.reason == "unreachable"


async def test_dropped_bytes_are_found() -> None:
    sent = await bytes_of_a_transfer(24)
    ended, _ = await pulled_through(Harm(drop=range(sent - 600, sent - 500)), deadline_s=0.3)
    assert (ended.ok, ended.reason in {"checksum", "late"}) == (False, True)


async def test_a_producer_that_stops_sending_is_given_up_at_the_deadline() -> None:
    ended, d = await pulled_through(Harm(hold_after=WELCOME_BYTES + 300), deadline_s=0.1)
    assert (ended.ok, ended.reason) == (False, "late")
    assert d.seconds[0] < 1.0


@pytest.mark.parametrize(
    ("armed", "reason"),
    [
        ("kv.corrupt_block=corrupt*1", "checksum"),
        ("kv.truncate=corrupt*1", "short"),
        ("kv.drop_block=corrupt*1", "late"),
        ("kv.delay=delay:2000*1", "late"),
        ("kv.sent_k_of_n=error*1", "short"),
        ("kv.before_pull=error", "short"),
        ("kv.after_pull=error", "short"),
    ],
)
async def test_each_failpoint_of_the_link_does_what_it_says(armed: str, reason: str) -> None:
    failpoints.arm({failpoints.VARIABLE: armed})
    try:
        async with pair() as (p, d, _):
            ticket = grant(p)
            ended = await d.handover.pull(ticket, wanted(ticket), 0.2)
            assert (ended.ok, ended.reason) == (False, reason)
            await until(lambda: p.handover.leases == 0)
    finally:
        failpoints.arm({})


async def test_a_dead_producer_is_unreachable_and_the_pull_ends() -> None:
    registry = MemoryRegistry()
    async with node("d", registry) as d:
        async with node("p", registry) as p:
            ticket = grant(p)
        ended = await d.handover.pull(ticket, wanted(ticket))
        assert (ended.ok, ended.reason) == (False, "unreachable")


async def test_a_consumer_that_vanishes_leaves_the_lease_to_its_time_and_no_link() -> None:
    before = descriptors()
    async with pair(layout=BIG, ttl_ms=300) as (p, _, _registry):
        ticket = grant(p, tokens=BIG_TOKENS, blocks=BIG_BLOCKS)
        async with greeted(p, BIG) as link:
            await send(link, Pull(ticket.lease, as_wanted(ticket, BIG)))
            await until(lambda: p.handover.counts().blocks_sent > 0)
        await until(lambda: p.handover.leases == 0)
    assert descriptors() == before


async def test_a_lease_that_ends_while_it_is_sent_stops_the_transfer_before_the_core_is_told() -> None:
    async with pair(layout=BIG) as (p, d, registry), TcpProxy(p.port, Harm(hold_after=1 << 20)) as proxy:
        ticket = await detour(grant(p, tokens=BIG_TOKENS, blocks=BIG_BLOCKS), registry, proxy)
        pull = asyncio.create_task(d.handover.pull(ticket, wanted(ticket, BIG, own=13)))
        await proxy.harm.held.wait()
        assert p.handover.release(ticket.lease)
        p.pool[:] = bytes(len(p.pool))
        proxy.harm.release.set()
        ended = await pull
        assert (ended.ok, ended.reason) == (False, "short")
        assert p.handover.counts().blocks_sent < len(BIG_BLOCKS)


async def test_a_cancelled_pull_writes_nothing_more() -> None:
    async with pair(layout=BIG) as (p, d, registry), TcpProxy(p.port, Harm(hold_after=3 << 20)) as proxy:
        ticket = await detour(grant(p, tokens=BIG_TOKENS, blocks=BIG_BLOCKS), registry, proxy)
        pull = asyncio.create_task(d.handover.pull(ticket, wanted(ticket, BIG, own=13)))
        await proxy.harm.held.wait()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        d.pool[:] = bytes([0x33]) * len(d.pool)
        proxy.harm.release.set()
        await d.handover.abandon(ticket)
        await until(lambda: p.handover.leases == 0)
        assert d.pool == bytes([0x33]) * len(d.pool)


async def test_no_task_and_no_descriptor_is_left_after_failures() -> None:
    tasks, fds = len(asyncio.all_tasks()), descriptors()
    for harm in (Harm(cut_after=500), Harm(flip_at=900), Harm(cut_after=2)):
        await pulled_through(harm)
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await until(lambda: descriptors() == fds)


async def bytes_of_a_transfer(tokens: int) -> int:
    async with pair() as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        ticket = await detour(grant(p, tokens=tokens), registry, proxy)
        assert (await d.handover.pull(ticket, wanted(ticket))).ok
        await until(lambda: p.handover.leases == 0)
        released = 4 + len(msgspec.msgpack.encode(Released(ticket.lease)))
        return len(proxy.passed) - released
