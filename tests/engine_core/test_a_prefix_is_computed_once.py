"""What the prefix cache saves, what it must not share, and what it tells the router."""

import pytest

from fakes.core_harness import CoreHarness, make_submit, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.messages import Deltas, KVChanged

PREFIX = [33 + position % 90 for position in range(1024)]
FEW = SamplingParams(temperature=0.0, max_tokens=4)


def test_a_second_request_computes_only_its_own_tail() -> None:
    harness = CoreHarness(sim_config(kv_blocks=200))
    harness.generate(make_submit([*PREFIX, 1, 2, 3], request_id="first", sampling=FEW))
    before = harness.stats()
    harness.generate(make_submit([*PREFIX, 4, 5], request_id="second", sampling=FEW))
    after = harness.stats()
    assert after.prompt_tokens - before.prompt_tokens == 2
    assert after.prefix_hits - before.prefix_hits == 1024
    assert after.prefix_queries - before.prefix_queries == 1026


def test_the_text_is_that_of_an_empty_cache() -> None:
    submit = make_submit([*PREFIX, 7], request_id="again")
    warm = CoreHarness(sim_config(kv_blocks=200))
    warm.generate(make_submit([*PREFIX, 9], request_id="first"))
    assert warm.generate(submit) == CoreHarness(sim_config(kv_blocks=200)).generate(submit)


@pytest.mark.parametrize("length", [31, 32, 33, 63, 64, 65])
def test_a_prompt_that_is_cached_whole_still_computes_its_last_position(length: int) -> None:
    prompt = PREFIX[:length]
    harness = CoreHarness()
    first = harness.generate(make_submit(prompt, request_id="first"))
    before = harness.stats().prompt_tokens
    assert harness.generate(make_submit(prompt, request_id="second")) == first
    assert harness.stats().prompt_tokens - before == (length % 32 or 1)


def test_cached_tokens_are_told_with_the_first_token_only() -> None:
    harness = CoreHarness()
    harness.generate(make_submit(PREFIX[:64], request_id="first"))
    harness.said.clear()
    harness.generate(make_submit(PREFIX[:64], request_id="second"))
    told = [delta.cached_tokens for deltas in harness.take(Deltas) for delta in deltas.items]
    assert told == [63] + [0] * (len(told) - 1)


def test_a_shared_block_is_never_written() -> None:
    harness = CoreHarness()
    harness.generate(make_submit(PREFIX[:64], request_id="first", sampling=FEW))
    shared = [bytes(harness.block(block)) for block in range(1, 64)]
    harness.generate(make_submit(PREFIX[:64], request_id="second", sampling=FEW))
    assert sum(bytes(harness.block(1 + index)) != old for index, old in enumerate(shared)) <= 1


def test_generated_blocks_are_reused_by_the_next_turn() -> None:
    harness = CoreHarness()
    said = harness.generate(
        make_submit(PREFIX[:40], request_id="turn1", sampling=SamplingParams(max_tokens=60), eos=())
    )
    before = harness.stats()
    harness.generate(make_submit([*PREFIX[:40], *said, 10, 11], request_id="turn2"))
    assert harness.stats().prefix_hits - before.prefix_hits == 96


def test_tenants_with_another_root_share_nothing() -> None:
    harness = CoreHarness()
    harness.generate(make_submit(PREFIX[:100], request_id="mine", chain_root=b"mine"))
    harness.generate(make_submit(PREFIX[:100], request_id="yours", chain_root=b"yours"))
    assert harness.stats().prefix_hits == 0


def test_events_follow_what_is_cached() -> None:
    harness = CoreHarness(sim_config(kv_blocks=10))
    known: set[str] = set()
    for number in range(6):
        harness.generate(make_submit([number] * 100, request_id=str(number), sampling=FEW))
        for event in harness.take(KVChanged):
            known -= set(event.removed)
            known |= set(event.stored)
        assert len(known) == harness.stats().blocks.cached
    assert all(len(one) == 16 for one in known)
