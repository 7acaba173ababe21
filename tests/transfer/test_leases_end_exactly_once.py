"""The table of leases against a model: every lease ends exactly once, none lives past its time."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from triptych_contract.clock import ManualClock
from triptych_contract.errors import HandoverRefused, Overloaded
from triptych_contract.handover import Pull, WantedBlock
from triptych_engine.kv.layout import KVLayout
from triptych_engine.messages import Inbox, ReleaseLease
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.holdings import Holdings
from triptych_engine.transfer.leases import KVHolding, LeaseTable
from triptych_engine.transfer.offer import offer_blocks

LAYOUT = KVLayout(num_blocks=64, segments=2, block_tokens=4, token_bytes=8)
HOLDING = KVHolding((5, 6), (b"\x01" * 32,), 6)
TTL_MS = 2000


class LeaseMachine(RuleBasedStateMachine):
    """Grants, renewals, pulls, releases and expiries in any order, beside a dict of expiry times."""

    leases: Bundle[str] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(100.0)
        self.store = EmbeddingStore(capacity_bytes=1000)
        self.store.put(b"\x05" * 32, b"12345678", count=1)
        self.told: list[Inbox] = []
        self.stopped: list[str] = []
        self.holdings = Holdings(clock=self.clock, ttl_ms=TTL_MS, store=self.store, core_send=self.tell)
        self.holdings.on_end(self.stopped.append)
        self.expiry_s: dict[str, float] = {}
        self.ended: set[str] = set()
        self.number = 0

    def tell(self, message: Inbox) -> None:
        assert isinstance(message, ReleaseLease)
        assert self.stopped[-1] == message.lease, "readers are stopped before the core is told"
        self.told.append(message)

    @rule(target=leases)
    def grant(self) -> str:
        self.number += 1
        lease = f"{self.number:032x}"
        self.holdings.grant_kv(lease, HOLDING)
        self.expiry_s[lease] = self.clock.now_s() + TTL_MS / 1000
        return lease

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def expire(self) -> None:
        over = {lease for lease, expiry_s in self.expiry_s.items() if self.clock.now_s() >= expiry_s}
        assert self.holdings.expire() == len(over)
        self.end(over)

    @rule(lease=leases)
    def renew(self, lease: str) -> None:
        if self.lives(lease):
            self.holdings.renew(lease)
            self.expiry_s[lease] = self.clock.now_s() + TTL_MS / 1000
        else:
            with pytest.raises(HandoverRefused):
                self.holdings.renew(lease)

    @rule(lease=leases, index=st.integers(-1, 2), tokens=st.integers(1, 5))
    def pull(self, lease: str, index: int, tokens: int) -> None:
        identity = b"\x01" * 32 if index == 0 else b""
        asked = Pull(lease, (WantedBlock(index, identity, tokens),))
        if self.lives(lease) and (index, tokens) in {(0, 4), (1, 2)}:
            offered = offer_blocks(asked, self.holdings.find(lease), LAYOUT)
            assert offered.blocks[0].size_bytes == LAYOUT.valid_bytes(tokens)
        else:
            with pytest.raises(HandoverRefused):
                offer_blocks(asked, self.holdings.find(lease), LAYOUT)

    @rule(lease=leases)
    def release(self, lease: str) -> None:
        assert self.holdings.release(lease) == (lease in self.expiry_s)
        self.end({lease} & set(self.expiry_s))

    def lives(self, lease: str) -> bool:
        return lease in self.expiry_s and self.clock.now_s() < self.expiry_s[lease]

    def end(self, leases: set[str]) -> None:
        for lease in leases:
            assert lease not in self.ended
            self.ended.add(lease)
            del self.expiry_s[lease]

    @invariant()
    def the_table_holds_what_has_not_ended(self) -> None:
        assert len(self.holdings) == len(self.expiry_s)

    @invariant()
    def the_core_is_told_of_each_end_once(self) -> None:
        told = [message.lease for message in self.told if isinstance(message, ReleaseLease)]
        assert len(told) == len(set(told))
        assert set(told) == self.ended

    @invariant()
    def the_next_expiry_is_that_of_the_oldest(self) -> None:
        next_s = self.holdings.next_expiry_in_s()
        if not self.expiry_s:
            assert next_s is None
        else:
            assert next_s == pytest.approx(max(0.0, min(self.expiry_s.values()) - self.clock.now_s()))


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_full_table_refuses_and_the_core_frees_the_blocks() -> None:
    table = LeaseTable(ttl_s=1.0, limit=1)
    table.grant("a", HOLDING, now_s=0.0)
    with pytest.raises(Overloaded):
        table.grant("b", HOLDING, now_s=0.0)


def test_an_id_in_use_is_a_programming_error_and_harms_no_lease() -> None:
    told: list[Inbox] = []
    holdings = Holdings(clock=ManualClock(), ttl_ms=1000, store=EmbeddingStore(), core_send=told.append)
    holdings.grant_kv("a", HOLDING)
    with pytest.raises(ValueError, match="in use"):
        holdings.grant_kv("a", HOLDING)
    assert (len(holdings), told) == (1, [])
