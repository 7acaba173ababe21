"""Embeddings: kept by digest up to a cap, pinned by leases, pulled and verified like blocks."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.kv_nodes import Node, detour, node, pair, until
from fakes.tcp_proxy import Harm, TcpProxy
from triptych_contract.errors import HandoverRefused
from triptych_contract.handover import EmbeddingHead, EmbeddingManifest, Welcome
from triptych_contract.registry import MemoryRegistry
from triptych_engine.transfer.embeddings import EmbeddingStore

CAT, DOG, OWL = (bytes([value]) * 32 for value in (1, 2, 3))


def put(p: Node, *digests: bytes) -> None:
    for digest in digests:
        assert p.handover.embeddings.put(digest, digest[:1] * 24, count=3)


async def test_pulled_embeddings_are_equal_kept_and_the_lease_is_given_back() -> None:
    async with pair() as (p, d, _):
        put(p, CAT, DOG)
        ticket = p.handover.grant_embeddings([CAT, DOG])
        assert ticket.digests == (CAT.hex(), DOG.hex())
        assert await d.handover.pull_embeddings(ticket, [DOG, CAT]) == {DOG: DOG[:1] * 24, CAT: CAT[:1] * 24}
        kept = d.handover.embeddings.get(DOG)
        assert kept is not None
        assert kept.count == 3
        await until(lambda: p.handover.leases == 0)
        assert d.handover.counts().embeddings_received == 2
        assert p.to_core == []


async def test_what_is_not_stored_is_not_granted_and_what_is_not_leased_is_not_sent() -> None:
    async with pair() as (p, d, _):
        put(p, CAT, OWL)
        with pytest.raises(HandoverRefused):
            p.handover.grant_embeddings([CAT, DOG])
        ticket = p.handover.grant_embeddings([CAT])
        with pytest.raises(HandoverRefused, match="outside"):
            await d.handover.pull_embeddings(ticket, [OWL])


async def test_a_flipped_bit_is_found() -> None:
    async with pair() as (p, d, registry), TcpProxy(p.port, Harm()) as proxy:
        put(p, CAT)
        ticket = await detour(p.handover.grant_embeddings([CAT]), registry, proxy)
        manifest = EmbeddingManifest(ticket.lease, (EmbeddingHead(CAT.hex(), 3, "int32", 24),))
        proxy.harm.flip_at = sum(4 + len(msgspec.msgpack.encode(frame)) for frame in (Welcome("p"), manifest)) + 5
        with pytest.raises(HandoverRefused, match="differs"):
            await d.handover.pull_embeddings(ticket, [CAT])
        assert d.handover.failures()["checksum"] == 1
        assert len(d.handover.embeddings) == 0


@pytest.mark.parametrize("changes", [{"embedding_dtype": "float32"}, {"embedding_bytes": 16}])
async def test_another_type_or_width_is_refused(changes: dict[str, object]) -> None:
    registry = MemoryRegistry()
    async with node("p", registry) as p, node("d", registry, **changes) as d:
        put(p, CAT)
        with pytest.raises(HandoverRefused):
            await d.handover.pull_embeddings(p.handover.grant_embeddings([CAT]), [CAT])
        assert d.handover.failures()["manifest"] == 1


async def test_an_address_that_discovery_does_not_list_is_not_dialled() -> None:
    async with pair() as (p, d, _), TcpProxy(p.port, Harm()) as proxy:
        put(p, CAT)
        ticket = msgspec.structs.replace(p.handover.grant_embeddings([CAT]), remote_port=proxy.port)
        with pytest.raises(HandoverRefused):
            await d.handover.pull_embeddings(ticket, [CAT])
        assert proxy.connections == 0


def test_the_least_recently_used_entry_leaves_first_and_pinned_ones_stay() -> None:
    store = EmbeddingStore(capacity_bytes=20)
    store.put(CAT, b"x" * 8, count=1)
    store.put(DOG, b"x" * 8, count=1)
    store.get(CAT)
    store.put(OWL, b"x" * 8, count=1)
    assert (store.get(DOG), store.get(CAT) is not None) == (None, True)
    store.pin([CAT, OWL])
    assert not store.put(DOG, b"x" * 8, count=1)
    store.unpin([CAT])
    assert store.put(DOG, b"x" * 8, count=1)
    assert store.get(CAT) is None


@given(
    st.lists(st.tuples(st.sampled_from(["put", "pin", "unpin"]), st.integers(0, 5), st.integers(0, 40)), max_size=60)
)
def test_the_store_never_exceeds_its_cap_nor_loses_what_is_pinned(steps: list[tuple[str, int, int]]) -> None:
    store = EmbeddingStore(capacity_bytes=100)
    pins = dict.fromkeys(range(6), 0)
    for step, number, size in steps:
        digest = bytes([number]) * 32
        if step == "put":
            store.put(digest, bytes(size), count=1)
        elif step == "pin" and store.get(digest) is not None:
            store.pin([digest])
            pins[number] += 1
        elif step == "unpin" and pins[number]:
            store.unpin([digest])
            pins[number] -= 1
        entries = [store.get(bytes([at]) * 32) for at in range(6)]
        assert store.size_bytes == sum(len(entry.data) for entry in entries if entry is not None) <= 100
        assert all(entries[at] is not None for at in range(6) if pins[at])
