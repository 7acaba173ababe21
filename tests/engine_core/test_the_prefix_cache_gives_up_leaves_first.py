"""Which cached block goes first when free ones run out."""

import pytest

from triptych_contract.hashing import chain_hashes
from triptych_engine.kv.blocks import BlockPool
from triptych_engine.kv.prefix import PrefixCache

ROOT = b"root"


class Cache:
    """A pool whose chains are written as words: one letter is one full block."""

    def __init__(self, num_blocks: int) -> None:
        self.prefix = PrefixCache()
        self.pool = BlockPool(num_blocks + 1, self.prefix)

    def hashes(self, word: str) -> list[bytes]:
        return chain_hashes(ROOT, [ord(letter) for letter in word for _ in range(32)])

    def hold(self, word: str) -> list[int]:
        """Compute and keep a chain."""
        hashes = self.hashes(word)
        table = self.prefix.match(hashes, root=ROOT)
        self.pool.share(table)
        for index in range(len(table), len(word)):
            table += self.pool.allocate(1)
            self.prefix.insert(table[index], hashes[index], parent=hashes[index - 1] if index else ROOT)
        return table

    def use(self, word: str) -> None:
        """Compute a chain and finish."""
        self.pool.release(self.hold(word))

    def cached(self, word: str) -> int:
        """Blocks of the chain that can be matched."""
        return len(self.prefix.match(self.hashes(word), root=ROOT))


def test_the_end_of_a_chain_goes_before_its_head() -> None:
    cache = Cache(4)
    cache.use("abcd")
    cache.pool.allocate(2)
    assert cache.cached("abcd") == 2


def test_the_least_recently_used_chain_goes_first() -> None:
    cache = Cache(6)
    cache.use("abc")
    cache.use("xyz")
    cache.use("abc")
    cache.pool.allocate(3)
    assert (cache.cached("abc"), cache.cached("xyz")) == (3, 0)


def test_a_head_outlives_all_its_branches() -> None:
    cache = Cache(5)
    cache.use("ab")
    cache.use("ac")
    cache.use("x")
    cache.use("y")
    cache.pool.allocate(2)
    assert (cache.cached("ab"), cache.cached("ac"), cache.cached("x")) == (1, 1, 1)


def test_a_recently_used_head_is_kept_although_its_branch_goes() -> None:
    cache = Cache(4)
    cache.use("ab")
    cache.use("xy")
    cache.use("a")
    cache.pool.allocate(3)
    assert (cache.cached("ab"), cache.cached("xy")) == (1, 0)


def test_a_held_chain_is_never_evicted() -> None:
    cache = Cache(4)
    table = cache.hold("ab")
    cache.use("xy")
    assert not set(cache.pool.allocate(2)) & set(table)
    assert cache.pool.available == 0
    assert cache.cached("ab") == 2


def test_a_head_that_nobody_holds_goes_although_its_duplicate_branch_is_held() -> None:
    """Two requests compute one block at the same time; the one whose copy is not registered lives on."""
    cache = Cache(4)
    first, second = cache.pool.allocate(1), cache.pool.allocate(2)
    head, branch = cache.hashes("ab")
    assert cache.prefix.insert(first[0], head, parent=ROOT)
    assert not cache.prefix.insert(second[0], head, parent=ROOT)
    assert cache.prefix.insert(second[1], branch, parent=head)
    cache.pool.release(first)
    cache.pool.allocate(2)
    assert cache.cached("ab") == 0
    cache.pool.release(second)
    assert cache.pool.counts().cached == 1


def test_a_head_whose_branch_came_to_rest_after_it_still_goes_last() -> None:
    cache = Cache(4)
    first, second = cache.pool.allocate(1), cache.pool.allocate(2)
    head, branch = cache.hashes("ab")
    cache.prefix.insert(first[0], head, parent=ROOT)
    cache.prefix.insert(second[1], branch, parent=head)
    cache.pool.release(first)
    cache.pool.release(second)
    cache.pool.allocate(3)
    assert cache.cached("ab") == 1


def test_a_chain_is_matched_only_from_its_own_root() -> None:
    cache = Cache(4)
    cache.use("ab")
    assert cache.prefix.match(cache.hashes("ab"), root=b"another tenant") == []
    assert cache.prefix.match(cache.hashes("ab")[1:], root=ROOT) == []


def test_nothing_is_evicted_from_an_empty_cache() -> None:
    with pytest.raises(LookupError):
        PrefixCache().evict()


def test_using_one_chain_again_and_again_costs_no_memory() -> None:
    cache = Cache(8)
    for _ in range(2000):
        cache.use("abc")
        cache.use("x")
    cache.pool.allocate(8)
    assert len(cache.prefix) == 0
