"""The block pool under random use: every block is counted in exactly one state, and none in use is given away."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import strategies  # noqa: F401 - loads the hypothesis profile
from triptych_contract.hashing import chain_hashes
from triptych_engine.kv.audit import audit
from triptych_engine.kv.blocks import BlockFault, BlockPool, BlockState, OutOfBlocks
from triptych_engine.kv.prefix import PrefixCache

ROOT = b"root"
NUM_BLOCKS = 12


class BlockPoolMachine(RuleBasedStateMachine):
    """Requests that allocate, register, share, release and lease chains of blocks, as the core does."""

    chains = Bundle("chains")
    leases = Bundle("leases")

    @initialize()
    def make_pool(self) -> None:
        self.prefix = PrefixCache()
        self.pool = BlockPool(NUM_BLOCKS, self.prefix)
        self.tables: dict[int, list[int]] = {}
        self.leased: dict[str, list[int]] = {}
        self.known: set[bytes] = set()
        self.made = 0

    def _in_use(self) -> set[int]:
        owned = [*self.tables.values(), *self.leased.values()]
        return {block for table in owned for block in table}

    @rule(target=chains, words=st.lists(st.integers(0, 2), min_size=1, max_size=5), computed=st.booleans())
    def admit(self, words: list[int], computed: bool) -> object:
        """A prompt of whole blocks: what is cached is shared, the rest allocated and, once computed, registered."""
        hashes = chain_hashes(ROOT, [word for word in words for _ in range(32)])
        matched = self.prefix.match(hashes, root=ROOT)
        idle = sum(self.prefix.is_idle(block) for block in matched)
        missing = len(words) - len(matched)
        if missing + idle > self.pool.available:
            return multiple()
        in_use = self._in_use()
        self.pool.share(matched)
        fresh = self.pool.allocate(missing)
        assert not in_use & set(fresh), "a block in use was given away"
        assert not set(matched) & set(fresh)
        table = matched + fresh
        for index in range(len(matched), len(words) if computed else 0):
            self.prefix.insert(table[index], hashes[index], parent=hashes[index - 1] if index else ROOT)
        self.made += 1
        self.tables[self.made] = table
        return self.made

    @rule(chain=consumes(chains))
    def finish(self, chain: int) -> None:
        self.pool.release(self.tables.pop(chain))

    @rule(target=leases, chain=consumes(chains))
    def grant(self, chain: int) -> str:
        table = self.tables.pop(chain)
        self.pool.lease(table)
        self.pool.release(table)
        self.leased[str(chain)] = table
        return str(chain)

    @rule(lease=consumes(leases))
    def end_lease(self, lease: str) -> None:
        self.pool.unlease(self.leased.pop(lease))

    @rule(count=st.integers(0, NUM_BLOCKS))
    def ask_for_too_much(self, count: int) -> None:
        before = self.pool.counts()
        with pytest.raises(OutOfBlocks):
            self.pool.allocate(self.pool.available + 1 + count)
        assert self.pool.counts() == before

    @invariant()
    def audit_finds_nothing(self) -> None:
        assert audit(self.pool, self.prefix, tables=self.tables.values(), leases=self.leased) == ()

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.pool.counts()
        assert counts.free + counts.cached + counts.held + counts.in_transfer == counts.total == NUM_BLOCKS - 1
        assert self.pool.available == counts.free + counts.cached

    @invariant()
    def events_tell_what_is_cached(self) -> None:
        """A reader that applies removals and then additions has exactly the cached hashes."""
        events = self.prefix.take_events()
        self.known -= set(events.removed) - set(events.stored)
        self.known |= set(events.stored)
        self.known -= {gone for gone in events.removed if gone not in {one.identity for one in self.prefix.entries()}}
        assert self.known == {entry.identity for entry in self.prefix.entries()}


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=40, stateful_step_count=30)


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(8, PrefixCache())


def test_a_block_is_counted_in_the_strongest_of_its_states(pool: BlockPool) -> None:
    (block,) = pool.allocate(1)
    assert pool.state(block) is BlockState.HELD
    pool.lease([block])
    assert pool.state(block) is BlockState.IN_TRANSFER
    pool.release([block])
    assert pool.state(block) is BlockState.IN_TRANSFER
    pool.unlease([block])
    assert pool.state(block) is BlockState.FREE


def test_two_leases_over_one_block_count_it_once(pool: BlockPool) -> None:
    blocks = pool.allocate(2)
    pool.lease(blocks)
    pool.lease(blocks)
    assert pool.counts().in_transfer == 2
    pool.unlease(blocks)
    assert pool.counts().in_transfer == 2


@pytest.mark.parametrize("misuse", ["release", "unlease", "lease", "share"])
def test_using_a_free_block_is_a_fault(pool: BlockPool, misuse: str) -> None:
    with pytest.raises(BlockFault):
        getattr(pool, misuse)([3])


def test_the_padding_block_is_never_given(pool: BlockPool) -> None:
    assert 0 not in pool.allocate(pool.total)


def test_the_audit_sees_a_leaked_block(pool: BlockPool) -> None:
    (block,) = pool.allocate(1)
    faults = audit(pool, PrefixCache(), tables=[], leases={})
    assert any(f"block {block}" in fault for fault in faults)


def test_the_audit_sees_a_table_that_names_a_free_block(pool: BlockPool) -> None:
    assert audit(pool, PrefixCache(), tables=[[5]], leases={})


def test_the_audit_sees_an_owner_of_the_padding_block(pool: BlockPool) -> None:
    assert "the padding block is owned" in audit(pool, PrefixCache(), tables=[[0]], leases={})
