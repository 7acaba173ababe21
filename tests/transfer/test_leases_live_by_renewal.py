"""Leases over time: expiry by itself, renewal by whoever holds the ticket, release on every other end."""

import asyncio

import pytest

from fakes.kv_nodes import detour, grant, node, pair, until, wanted
from fakes.tcp_proxy import Harm, TcpProxy
from triptych_contract.clock import ManualClock
from triptych_contract.errors import HandoverRefused
from triptych_contract.handover import LeaseRenewal
from triptych_contract.registry import MemoryRegistry
from triptych_engine.messages import ReleaseLease
from triptych_engine.transfer.pace import RENEWALS_PER_TTL


async def test_a_lease_that_nobody_takes_ends_by_itself() -> None:
    async with pair(ttl_ms=60) as (p, _, _registry):
        ticket = grant(p)
        await until(lambda: p.handover.leases == 0)
        assert p.to_core == [ReleaseLease(ticket.lease)]


async def test_time_is_that_of_the_clock_passed_in() -> None:
    clock = ManualClock()
    async with pair(ttl_ms=30_000, clock=clock) as (p, _, _registry):
        ticket = grant(p)
        clock.advance(29.9)
        assert p.handover.expire() == 0
        assert p.handover.renew(ticket.lease) == LeaseRenewal(ticket.lease, 30_000)
        clock.advance(29.9)
        assert p.handover.expire() == 0
        clock.advance(0.2)
        with pytest.raises(HandoverRefused):
            p.handover.renew(ticket.lease)
        assert p.handover.expire() == 1
        assert p.handover.leases == 0


async def test_a_checked_ticket_is_renewed_while_it_is_queued_and_until_it_is_pulled() -> None:
    async with pair(ttl_ms=240) as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        ticket = await detour(grant(p), registry, proxy)
        await d.handover.check(ticket)
        await until(lambda: proxy.passed.count(b"renewed") > RENEWALS_PER_TTL)
        assert p.handover.leases == 1
        assert (await d.handover.pull(ticket, wanted(ticket))).ok
        await until(lambda: p.handover.leases == 0)


async def test_a_lease_is_renewed_while_its_blocks_are_pulled() -> None:
    async with pair(ttl_ms=240) as (p, d, registry), TcpProxy(p.port, Harm(hold_after=200)) as proxy:
        ticket = await detour(grant(p), registry, proxy)
        pull = asyncio.create_task(d.handover.pull(ticket, wanted(ticket), 5.0))
        await proxy.harm.held.wait()
        proxy.harm.hold_after = None
        await until(lambda: proxy.passed.count(b"renewed") > RENEWALS_PER_TTL)
        assert p.handover.leases == 1
        proxy.harm.release.set()
        assert (await pull).ok


async def test_an_abandoned_ticket_frees_the_blocks_at_once() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p)
        await d.handover.check(ticket)
        await d.handover.abandon(ticket)
        assert p.handover.leases == 0
        await d.handover.abandon(ticket)


async def test_a_forgotten_ticket_is_renewed_no_more_and_serves_another_instance() -> None:
    registry = MemoryRegistry()
    async with node("p", registry, ttl_ms=500) as p, node("d", registry) as d, node("e", registry) as e:
        ticket = grant(p)
        await d.handover.check(ticket)
        d.handover.forget(ticket)
        assert p.handover.leases == 1
        assert (await e.handover.pull(ticket, wanted(ticket))).ok


async def test_an_expired_lease_is_refused_and_the_consumer_recomputes() -> None:
    clock = ManualClock()
    async with pair(clock=clock) as (p, d, _):
        ticket = grant(p)
        clock.advance(2.0)
        ended = await d.handover.pull(ticket, wanted(ticket))
        assert (ended.ok, ended.reason) == (False, "refused")
        assert p.handover.counts().refused == 1


async def test_release_is_idempotent_and_a_forged_lease_is_refused() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p)
        assert p.handover.release(ticket.lease)
        assert not p.handover.release(ticket.lease)
        assert not p.handover.release("f" * 32)
        with pytest.raises(HandoverRefused):
            p.handover.renew("f" * 32)
        ended = await d.handover.pull(ticket, wanted(ticket))
        assert (ended.ok, ended.reason) == (False, "refused")
        assert p.to_core == [ReleaseLease(ticket.lease)]


async def test_stop_ends_every_lease() -> None:
    async with pair() as (p, _, _registry):
        for number in range(3):
            grant(p, lease=f"{number:032x}")
        await p.handover.stop()
        assert p.handover.leases == 0
        assert len(p.to_core) == 3
        with pytest.raises(HandoverRefused):
            grant(p, lease="7" * 32)
