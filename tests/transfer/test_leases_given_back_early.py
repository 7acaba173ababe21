"""A lease that is given back before it was granted, or before its leg was read, keeps nothing."""

import pytest

from triptych_contract.clock import ManualClock
from triptych_contract.errors import HandoverRefused
from triptych_engine.messages import Inbox, ReleaseLease
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.holdings import Holdings
from triptych_engine.transfer.leases import KVHolding
from triptych_engine.transfer.spent import SpentIds

LEASE, OTHER = "a" * 32, "b" * 32
DIGEST = b"\x05" * 32
HOLDING = KVHolding((5, 6), (b"\x01" * 32,), 6)


class Producer:
    """Holdings, the clock that they read, and what the core was told."""

    def __init__(self) -> None:
        self.told: list[Inbox] = []
        self.clock = ManualClock(100.0)
        self.store = EmbeddingStore(capacity_bytes=8)
        self.store.put(DIGEST, b"12345678", count=1)
        self.holdings = Holdings(clock=self.clock, ttl_ms=1000, store=self.store, core_send=self.told.append)


@pytest.fixture
def producer() -> Producer:
    return Producer()


def test_a_release_during_the_leg_frees_the_blocks_at_its_grant(producer: Producer) -> None:
    holdings = producer.holdings
    with holdings.promised(LEASE):
        assert not holdings.release(LEASE)
        with pytest.raises(HandoverRefused):
            holdings.grant_kv(LEASE, HOLDING)
    assert (len(holdings), producer.told) == (0, [ReleaseLease(LEASE)])


def test_a_release_during_the_leg_leaves_no_embedding_pinned(producer: Producer) -> None:
    holdings = producer.holdings
    with holdings.promised(LEASE):
        holdings.release(LEASE)
        with pytest.raises(HandoverRefused):
            holdings.grant_embeddings(LEASE, [DIGEST])
    assert len(holdings) == 0
    producer.store.put(b"\x06" * 32, b"87654321", count=1)
    assert producer.store.get(DIGEST) is None, "nothing pins it, so it makes room"


def test_a_leg_that_comes_after_its_release_is_refused(producer: Producer) -> None:
    producer.holdings.release(LEASE)
    with pytest.raises(HandoverRefused), producer.holdings.promised(LEASE):
        pass
    with producer.holdings.promised(OTHER):
        producer.holdings.grant_kv(OTHER, HOLDING)
    assert len(producer.holdings) == 1


def test_an_id_in_use_is_refused_and_harms_neither_leg_nor_lease(producer: Producer) -> None:
    holdings = producer.holdings
    with holdings.promised(LEASE):
        with pytest.raises(HandoverRefused), holdings.promised(LEASE):
            pass
        holdings.grant_kv(LEASE, HOLDING)
    with pytest.raises(HandoverRefused), holdings.promised(LEASE):
        pass
    assert (len(holdings), producer.told) == (1, [])


def test_an_id_whose_leg_failed_or_whose_lease_ended_serves_no_second_time(producer: Producer) -> None:
    holdings = producer.holdings
    with holdings.promised(LEASE):
        pass
    with holdings.promised(OTHER):
        holdings.grant_kv(OTHER, HOLDING)
    assert holdings.release(OTHER)
    for lease in (LEASE, OTHER):
        with pytest.raises(HandoverRefused), holdings.promised(lease):
            pass


def test_spent_ids_are_forgotten_by_age_and_by_number() -> None:
    spent = SpentIds(life_s=10.0, limit=3)
    for at_s, lease in enumerate("abcd"):
        spent.add(lease, now_s=float(at_s))
    assert [lease for lease in "abcd" if spent.holds(lease, now_s=3.0)] == ["b", "c", "d"]
    assert [lease for lease in "abcd" if spent.holds(lease, now_s=12.0)] == ["d"]
    spent.add("e", now_s=12.0)
    assert len(spent) == 2, "an addition sweeps those whose time is over"
    spent.add("d", now_s=12.5)
    assert spent.holds("d", now_s=22.0), "a second end counts from anew"
