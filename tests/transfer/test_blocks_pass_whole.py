"""A healthy hand-over: the bytes, the counters, and that the lease is gone at once."""

import asyncio

import pytest

from fakes.kv_nodes import LAYOUT, STALE, descriptors, detour, grant, node, pair, until, wanted
from fakes.tcp_proxy import Harm, TcpProxy
from triptych_contract.registry import MemoryRegistry
from triptych_engine.kv.layout import KVLayout
from triptych_engine.messages import LeaseGranted, PullBlock, PullEnded, PullWanted, ReleaseLease


async def test_full_blocks_and_the_tail_arrive_equal_and_the_lease_is_given_back() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p, tokens=20)
        await d.handover.check(ticket)
        ended = await d.handover.pull(ticket, wanted(ticket))
        assert ended == PullEnded("own", ok=True, received=(0, 1, 2))
        assert (d.block(7), d.block(8)) == (p.block(3), p.block(5))
        assert d.valid(9, 4) == p.valid(4, 4)
        await until(lambda: p.handover.leases == 0)
        assert p.to_core == [ReleaseLease(ticket.lease)]


async def test_slots_after_the_last_token_are_neither_sent_nor_touched() -> None:
    async with pair() as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        ticket = await detour(grant(p, tokens=20), registry, proxy)
        d.pool[:] = bytes([0x11]) * len(d.pool)
        assert (await d.handover.pull(ticket, wanted(ticket))).ok
        assert bytes([STALE]) * 16 in p.block(4)
        assert p.valid(4, 4) in proxy.passed
        assert bytes([STALE]) * 16 not in proxy.passed
        segment = d.layout.segment_bytes
        kept = d.block(9)[4 * d.layout.token_bytes : segment]
        assert kept == bytes([0x11]) * len(kept)


async def test_no_other_block_is_touched() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p, tokens=24)
        d.pool[:] = bytes([0x22]) * len(d.pool)
        await d.handover.pull(ticket, wanted(ticket, own=7))
        untouched = bytes([0x22]) * d.layout.block_bytes
        assert all(d.block(block) == untouched for block in range(16) if block not in {7, 8, 9})


async def test_only_blocks_that_are_lacking_are_sent() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p, tokens=20)
        ended = await d.handover.pull(ticket, wanted(ticket, first_block=1))
        assert ended.received == (1, 2)
        assert p.handover.counts().blocks_sent == 2
        assert d.block(7) == p.block(5)


async def test_a_full_local_hit_only_gives_the_lease_back() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p)
        assert (await d.handover.pull(ticket, PullWanted("own", ticket.lease, ()))).ok
        await until(lambda: p.handover.leases == 0)
        assert p.handover.counts().blocks_sent == 0


async def test_both_ends_count_the_same() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p, tokens=20)
        await d.handover.pull(ticket, wanted(ticket))
        sent, received = p.handover.counts(), d.handover.counts()
        size = 2 * LAYOUT.block_bytes + LAYOUT.valid_bytes(4)
        assert (sent.blocks_sent, sent.bytes_sent) == (3, size)
        assert (received.blocks_received, received.bytes_received, received.requests) == (3, size, 1)
        assert (received.failed, received.refused, sent.refused) == (0, 0, 0)
        assert len(d.seconds) == 1


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(KVLayout(6, 4, 32, 20000), id="blocks larger than a batch"),
        pytest.param(KVLayout(1200, 1, 2, 4), id="more blocks than parts of a batch"),
        pytest.param(KVLayout(6, 3, 8, 7), id="odd sizes"),
    ],
)
async def test_every_geometry_arrives_equal(layout: KVLayout) -> None:
    async with pair(layout=layout) as (p, d, _):
        blocks = tuple(range(1, layout.num_blocks // 2))
        tokens = len(blocks) * layout.block_tokens - 1
        p.pool[:] = bytes(at * 7 % 251 for at in range(1009)) * (len(p.pool) // 1009) + bytes(len(p.pool) % 1009)
        granted = _granted(blocks, tokens, layout)
        ticket = p.handover.grant(granted, "req")
        ended = await d.handover.pull(ticket, _wanted(granted, layout, own=layout.num_blocks // 2))
        assert ended.ok
        assert all(d.block(layout.num_blocks // 2 + at) == p.block(block) for at, block in enumerate(blocks[:-1]))
        assert d.valid(layout.num_blocks // 2 + len(blocks) - 1, layout.block_tokens - 1) == p.valid(
            blocks[-1], layout.block_tokens - 1
        )


async def test_many_pulls_at_once_share_links_and_end_with_none_left() -> None:
    before_fds, before_tasks = descriptors(), len(asyncio.all_tasks())
    async with pair() as (p, d, _):
        tickets = [grant(p, tokens=8, lease=f"{number:032x}", blocks=(3,)) for number in range(40)]
        ends = await asyncio.gather(*(d.handover.pull(ticket, wanted(ticket)) for ticket in tickets))
        assert all(end.ok for end in ends)
        await until(lambda: p.handover.leases == 0)
    await until(lambda: len(asyncio.all_tasks()) == before_tasks)
    assert descriptors() == before_fds


async def test_a_producer_that_comes_back_on_the_same_port_is_dialled_anew() -> None:
    registry = MemoryRegistry()
    async with node("d", registry) as d:
        async with node("p", registry) as p:
            ticket = grant(p)
            assert (await d.handover.pull(ticket, wanted(ticket))).ok
            await until(lambda: p.handover.leases == 0)
        async with node("p", registry) as p:
            ticket = grant(p)
            assert (await d.handover.pull(ticket, wanted(ticket))).ok


def _granted(blocks: tuple[int, ...], tokens: int, layout: KVLayout) -> LeaseGranted:
    full = tokens // layout.block_tokens
    identities = tuple(index.to_bytes(32, "little") for index in range(full))
    return LeaseGranted("req", "2" * 32, blocks, identities, tokens)


def _wanted(granted: LeaseGranted, layout: KVLayout, *, own: int) -> PullWanted:
    full = len(granted.identities)
    blocks = [PullBlock(at, own + at, granted.identities[at], layout.block_tokens) for at in range(full)]
    blocks.append(PullBlock(full, own + full, b"", granted.num_tokens - full * layout.block_tokens))
    return PullWanted("own", granted.lease, tuple(blocks))
