"""Who may take a hand-over: token, discovery and link class; what is refused is never dialled."""

import asyncio
import contextlib
import socket

import msgspec
import pytest

from fakes.kv_nodes import LAYOUT, Node, grant, node, pair, ready, record, wanted
from fakes.tcp_proxy import Harm, TcpProxy
from triptych_contract.errors import HandoverRefused
from triptych_contract.handover import Ticket
from triptych_contract.registry import MemoryRegistry
from triptych_engine.kv.layout import KVLayout
from triptych_engine.transfer.service import Handover

OTHER = KVLayout(num_blocks=16, segments=2, block_tokens=8, token_bytes=32)


async def test_a_wrong_token_is_refused_and_counted_on_both_sides() -> None:
    registry = MemoryRegistry()
    async with node("p", registry) as p, node("d", registry, token="another-token-of-16") as d:
        ticket = grant(p)
        ended = await d.handover.pull(ticket, wanted(ticket))
        assert (ended.ok, ended.reason) == (False, "refused")
        assert p.handover.counts().refused == 1
        assert d.handover.failures()["refused"] == 1
        assert p.handover.leases == 1


async def test_an_empty_token_is_no_token() -> None:
    with pytest.raises(ValueError, match="token"):
        async with node("p", None, token=""):
            pass


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        pytest.param({"kv_dtype": "float32"}, "kv_dtype int32 here, float32 there", id="KV type"),
        pytest.param({"fingerprint": "e" * 16}, f"fingerprint {'f' * 16} here, {'e' * 16} there", id="model"),
        pytest.param({"layout": OTHER}, "layout 4x8x16 here, 2x8x32 there", id="layout"),
    ],
)
async def test_unequal_link_classes_are_refused_by_ticket_and_by_link(
    changes: dict[str, object], differs: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = MemoryRegistry()
    async with node("p", registry) as p, node("d", registry, **changes) as d:
        ticket = grant(p)
        with pytest.raises(HandoverRefused, match=d.handover.link_class):
            await d.handover.check(ticket)
        forged = msgspec.structs.replace(ticket, fingerprint=d.handover.link_class)
        ended = await d.handover.pull(forged, wanted(ticket))
        assert (ended.ok, ended.reason) == (False, "refused")
        assert differs in caplog.text
        assert p.handover.counts().refused == 1


async def test_only_the_number_of_blocks_may_differ() -> None:
    registry = MemoryRegistry()
    larger = msgspec.structs.replace(LAYOUT, num_blocks=40)
    async with node("p", registry) as p, node("d", registry, layout=larger) as d:
        ticket = grant(p)
        assert (await d.handover.pull(ticket, wanted(ticket, own=30))).ok
        assert d.block(30) == p.block(3)


async def refused_without_a_call(d: Node, ticket: Ticket, proxy: TcpProxy) -> None:
    with pytest.raises(HandoverRefused):
        await d.handover.check(ticket)
    ended = await d.handover.pull(ticket, wanted(ticket))
    assert (ended.ok, ended.reason) == (False, "refused")
    await d.handover.abandon(ticket)
    assert proxy.connections == 0
    assert d.handover.counts().refused == 2


async def test_an_address_that_discovery_does_not_list_is_not_dialled() -> None:
    async with pair() as (p, d, _), TcpProxy(p.port, Harm()) as proxy:
        ticket = msgspec.structs.replace(grant(p), remote_port=proxy.port)
        await refused_without_a_call(d, ticket, proxy)


async def test_the_address_of_another_instance_is_not_dialled() -> None:
    async with pair() as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        await registry.register(record("q", proxy.port))
        ticket = msgspec.structs.replace(grant(p), remote_port=proxy.port)
        await refused_without_a_call(d, ticket, proxy)


async def test_an_instance_of_another_service_is_not_dialled() -> None:
    async with pair() as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        await registry.register(record("p", proxy.port, service="foreign"))
        ticket = msgspec.structs.replace(grant(p), remote_port=proxy.port)
        await refused_without_a_call(d, ticket, proxy)


async def test_another_name_for_a_listed_address_is_not_dialled() -> None:
    async with pair() as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        await registry.register(record("p", proxy.port))
        ticket = msgspec.structs.replace(grant(p), remote_port=proxy.port, remote_host="localhost")
        await refused_without_a_call(d, ticket, proxy)


async def test_without_discovery_every_ticket_is_refused() -> None:
    async with node("p", MemoryRegistry()) as p, node("d", None) as d, TcpProxy(p.port, Harm()) as proxy:
        await refused_without_a_call(d, grant(p), proxy)


@pytest.mark.parametrize("changes", [{"version": 2}, {"tp_size": 2}])
async def test_other_versions_and_several_ranks_are_refused(changes: dict[str, int]) -> None:
    async with pair() as (p, d, _):
        with pytest.raises(HandoverRefused):
            await d.handover.check(msgspec.structs.replace(grant(p), **changes))


async def test_before_the_start_and_after_the_stop_nothing_is_taken() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p)
        await d.handover.stop()
        with pytest.raises(HandoverRefused):
            await d.handover.check(ticket)
        assert d.handover.link_class == ""
        await d.handover.abandon(ticket)
        d.handover.forget(ticket)
        assert p.handover.leases == 1


async def test_what_was_pulled_is_given_back_although_the_program_ends_at_once() -> None:
    async with pair() as (p, d, _):
        ticket = grant(p)
        assert (await d.handover.pull(ticket, wanted(ticket))).ok
        await d.handover.stop()
        assert p.handover.leases == 0


@pytest.mark.parametrize(
    "first_bytes",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04\x95" * 20, b"\xff" * 64, b"\x04\x00\x00\x00\x93\x01\x02\x03", b""],
    ids=["HTTP", "pickle", "huge length", "no frame", "nothing"],
)
async def test_strangers_at_the_kv_port_are_closed_and_harm_nothing(first_bytes: bytes) -> None:
    async with pair() as (p, d, _):
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", p.port))
            await loop.sock_sendall(sock, first_bytes)
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(sock, 100) == b""
        ticket = grant(p)
        assert (await d.handover.pull(ticket, wanted(ticket))).ok


async def test_the_kv_port_binds_only_the_address_that_it_is_told() -> None:
    async with node("p", None) as p:
        with socket.socket() as other:
            other.bind(("127.0.0.2", p.port))


def test_the_facade_is_the_whole_surface() -> None:
    public = {name for name in vars(Handover) if not name.startswith("_")}
    assert public == {
        "abandon", "check", "counts", "expire", "failures", "forget", "grant", "grant_embeddings", "leases",
        "link_class", "promised", "pull", "pull_embeddings", "release", "renew", "start", "stop",
    }  # fmt: skip
    assert ready(LAYOUT).layout == LAYOUT
