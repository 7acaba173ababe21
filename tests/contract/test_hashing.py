"""Block identity keeps apart what must not be shared, and is the same however it is computed."""

import hashlib
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as own
from triptych_contract.hashing import (
    AFFINITY_BLOCK_BYTES,
    AFFINITY_MAX_BLOCKS,
    HASH_BLOCK_TOKENS,
    MediaSpan,
    affinity_chain,
    chain_hashes,
    chain_root,
    checksum,
    media_digest,
)

ROOT = chain_root(fingerprint="model", kv_dtype="float32")
block_sizes = st.sampled_from([HASH_BLOCK_TOKENS, 2 * HASH_BLOCK_TOKENS])


def test_each_part_of_the_root_keeps_requests_apart():
    base = {"fingerprint": "m", "kv_dtype": "float32", "adapter": "a", "tenant": "t", "cache_salt": "s"}
    roots = [chain_root(**base)] + [chain_root(**(base | {name: "other"})) for name in base]
    assert len(set(roots)) == len(base) + 1
    assert all(len(root) == 32 for root in roots)


def test_text_moved_from_one_part_of_the_root_to_the_next_gives_another_root():
    roots = [
        chain_root(fingerprint="m", kv_dtype="f", adapter=a, tenant=t, cache_salt=s)
        for a, t, s in [("ab", "c", ""), ("a", "bc", ""), ("", "abc", ""), ("", "ab", "c"), ("", "", "abc")]
    ]
    assert len(set(roots)) == len(roots)


def test_the_first_hash_is_the_sha256_that_the_docstring_says():
    tokens = list(range(HASH_BLOCK_TOKENS))
    packed = b"".join(token.to_bytes(4, "little") for token in tokens)
    assert chain_hashes(ROOT, tokens) == [hashlib.sha256(ROOT + packed).digest()]


@given(tokens=own.token_lists, block=block_sizes)
def test_only_full_blocks_have_a_hash(tokens, block):
    assert len(chain_hashes(ROOT, tokens, block_tokens=block)) == len(tokens) // block


@given(tokens=own.token_lists, media=st.lists(own.media_spans, max_size=2), data=st.data())
def test_hashes_computed_piece_by_piece_equal_those_of_the_whole(tokens, media, data):
    whole = chain_hashes(ROOT, tokens, media=media)
    start = data.draw(st.integers(0, len(whole)))
    parent = whole[start - 1] if start else ROOT
    assert chain_hashes(parent, tokens, media=media, start_block=start) == whole[start:]


@given(tokens=own.token_lists, other=own.token_lists)
def test_equal_prefixes_have_equal_hashes_and_the_first_difference_ends_it(tokens, other):
    one, two = chain_hashes(ROOT, tokens), chain_hashes(ROOT, other)
    for block, (a, b) in enumerate(zip(one, two, strict=False)):
        end = (block + 1) * HASH_BLOCK_TOKENS
        assert (a == b) == (tokens[:end] == other[:end])


@given(tokens=st.lists(own.token_ids, min_size=64, max_size=128), at=st.integers(0, 63))
def test_a_changed_token_changes_every_later_block_and_no_earlier_one(tokens, at):
    changed = list(tokens)
    changed[at] ^= 1
    for block, (a, b) in enumerate(zip(chain_hashes(ROOT, tokens), chain_hashes(ROOT, changed), strict=True)):
        assert (a == b) == (block < at // HASH_BLOCK_TOKENS)


def test_another_tenant_shares_no_block():
    tokens = list(range(128))
    mine, yours = (chain_root(fingerprint="m", kv_dtype="f", tenant=tenant) for tenant in ("mine", "yours"))
    assert not set(chain_hashes(mine, tokens)) & set(chain_hashes(yours, tokens))


@given(span=own.media_spans)
def test_an_image_changes_its_own_blocks_and_the_later_ones(span):
    tokens = [7] * 160
    plain, with_image = chain_hashes(ROOT, tokens), chain_hashes(ROOT, tokens, media=[span])
    first = span.first // HASH_BLOCK_TOKENS
    assert with_image[:first] == plain[:first]
    assert not set(with_image[first:]) & set(plain[first:])


def test_two_images_and_two_places_of_one_image_are_kept_apart():
    tokens = [7] * 64
    spans = [
        [MediaSpan(b"a" * 32, 3, 4)],
        [MediaSpan(b"b" * 32, 3, 4)],
        [MediaSpan(b"a" * 32, 4, 4)],
        [MediaSpan(b"a" * 32, 3, 4), MediaSpan(b"b" * 32, 10, 4)],
    ]
    last = [chain_hashes(ROOT, tokens, media=media)[-1] for media in spans]
    assert len(set(last)) == len(spans)


def test_an_image_that_spans_blocks_gives_each_of_them_another_hash():
    tokens = [7] * 96
    hashes = chain_hashes(ROOT, tokens, media=[MediaSpan(b"a" * 32, 0, 96)])
    assert len(set(hashes)) == 3


def test_media_digests_differ_by_bytes_size_mode_and_tenant():
    variants = [
        media_digest(data, size=size, mode=mode, tenant=tenant)
        for data, size, mode, tenant in [
            (b"x", (1, 2), "RGB", "t"),
            (b"y", (1, 2), "RGB", "t"),
            (b"x", (2, 1), "RGB", "t"),
            (b"x", (1, 2), "L", "t"),
            (b"x", (1, 2), "RGB", "u"),
        ]
    ]
    assert len(set(variants)) == 5
    assert all(len(digest) == 32 for digest in variants)


def test_a_token_id_past_32_bits_is_an_error_and_not_another_token():
    with pytest.raises(OverflowError):
        chain_hashes(ROOT, [2**31] * HASH_BLOCK_TOKENS)


@given(size=st.integers(0, 5 * AFFINITY_BLOCK_BYTES), tail=st.binary(max_size=10))
def test_affinity_chains_share_the_blocks_that_the_bytes_share(size, tail):
    data = bytes(i % 251 for i in range(size))
    chain, longer = affinity_chain(data), affinity_chain(data + tail)
    assert len(chain) == size // AFFINITY_BLOCK_BYTES
    assert longer[: len(chain)] == chain
    assert affinity_chain(memoryview(data)) == chain


def test_an_affinity_chain_is_bounded_and_depends_on_all_earlier_blocks():
    same = bytes(AFFINITY_BLOCK_BYTES) * (AFFINITY_MAX_BLOCKS + 5)
    chain = affinity_chain(same)
    assert len(chain) == AFFINITY_MAX_BLOCKS
    assert len(set(chain)) == AFFINITY_MAX_BLOCKS
    assert not set(chain) & set(affinity_chain(b"x" + same[1:]))


@given(parts=st.lists(st.binary(max_size=40), max_size=6))
def test_a_checksum_does_not_depend_on_how_the_bytes_are_cut(parts):
    assert checksum(parts) == checksum([b"".join(parts)])
    assert checksum(memoryview(part) for part in parts) == checksum(parts)


@pytest.mark.parametrize(("one", "two"), list(combinations([b"", b"\0", b"\0\0", b"\1"], 2)))
def test_unequal_bytes_have_unequal_checksums(one, two):
    assert checksum([one]) != checksum([two])
