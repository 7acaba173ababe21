"""The simulated model is a witness: a fault in any block of the context changes what it says."""

from collections.abc import Callable

import pytest

from fakes.core_harness import CoreHarness, copy_blocks, make_submit, prefill, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.messages import LeaseGranted, Mode, PullBlock, PullEnded, PullWanted

PROMPT = [33 + position * position % 90 for position in range(140)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
Mutant = Callable[[CoreHarness, tuple[PullBlock, ...]], None]


def consume(mutate: Mutant, *, token_bytes: int = 8) -> list[int]:
    """The text after a hand-over in which something is done to the copied blocks."""
    config = sim_config(token_bytes=token_bytes)
    producer, consumer = CoreHarness(config), CoreHarness(config)
    leg = make_submit(PROMPT, request_id="p", mode=Mode.PREFILL, lease="l", sampling=GREEDY, eos=())
    granted: LeaseGranted = prefill(producer, leg)
    consumer.tell(make_submit(PROMPT, mode=Mode.PULL, lease="l", sampling=GREEDY, eos=()))
    consumer.run()
    (wanted,) = consumer.take(PullWanted)
    received = copy_blocks(source=producer, granted=granted, target=consumer, wanted=wanted.blocks)
    mutate(consumer, wanted.blocks)
    consumer.tell(PullEnded(id="r", ok=True, received=received))
    consumer.run()
    return consumer.tokens["r", 0]


def nothing(consumer: CoreHarness, blocks: tuple[PullBlock, ...]) -> None:
    """No fault."""


def flip_bit(index: int, offset: int) -> Mutant:
    def mutate(consumer: CoreHarness, blocks: tuple[PullBlock, ...]) -> None:
        consumer.block(blocks[index].block)[offset] ^= 1

    return mutate


def swap(first: int, second: int) -> Mutant:
    def mutate(consumer: CoreHarness, blocks: tuple[PullBlock, ...]) -> None:
        one, two = (consumer.block(blocks[index].block) for index in (first, second))
        one[:], two[:] = bytes(two), bytes(one)

    return mutate


def zero(index: int) -> Mutant:
    def mutate(consumer: CoreHarness, blocks: tuple[PullBlock, ...]) -> None:
        consumer.block(blocks[index].block)[:] = bytes(consumer.layout.block_bytes)

    return mutate


def half(index: int, segment: int) -> Mutant:
    """The second half of one segment did not arrive."""

    def mutate(consumer: CoreHarness, blocks: tuple[PullBlock, ...]) -> None:
        size = consumer.layout.segment_bytes
        consumer.block(blocks[index].block)[segment * size + size // 2 : (segment + 1) * size] = bytes(size // 2)

    return mutate


MUTANTS = {
    "bit in the first block": flip_bit(0, 0),
    "bit in the second segment": flip_bit(1, 32 * 8 + 5),
    "bit in the tail": flip_bit(4, 11 * 8),
    "two blocks swapped": swap(0, 1),
    "two later blocks swapped": swap(2, 3),
    "first block missing": zero(0),
    "tail missing": zero(4),
    "half of the first segment": half(1, 0),
    "half of the second segment": half(2, 1),
}


@pytest.mark.parametrize("mutate", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_faulty_block_changes_the_text(mutate: Mutant) -> None:
    assert consume(mutate) != consume(nothing)


def test_bytes_behind_the_valid_tokens_do_not_show() -> None:
    assert consume(flip_bit(4, 12 * 8)) == consume(nothing)


def test_filler_of_wide_slots_is_seen_too() -> None:
    assert consume(flip_bit(2, 40), token_bytes=64) != consume(nothing, token_bytes=64)


def test_wide_slots_say_the_same_as_narrow_ones() -> None:
    assert consume(nothing, token_bytes=64) == consume(nothing)


def test_context_is_remembered_with_what_came_before_it() -> None:
    """Like a model's KV, a block with the same tokens after another beginning is another block."""
    harness = CoreHarness()
    harness.generate(make_submit([40] * 32 + [50] * 32, request_id="a", sampling=GREEDY))
    one = bytes(harness.block(2))
    other = CoreHarness()
    other.generate(make_submit([41] * 32 + [50] * 32, request_id="b", sampling=GREEDY))
    assert one != bytes(other.block(2))


def test_outputs_end_by_themselves_now_and_then_and_are_never_monotonous() -> None:
    harness = CoreHarness(sim_config(kv_blocks=400))
    lengths = []
    for number in range(40):
        prompt = [32 + (number + position) % 90 for position in range(20 + number)]
        said = harness.generate(
            make_submit(prompt, request_id=str(number), sampling=SamplingParams(temperature=0.0, max_tokens=200))
        )
        lengths.append(len(said))
        assert len(said) < 16 or len(set(said)) >= 8
    assert len(set(lengths)) > 10
    assert min(lengths) < 60 < max(lengths)
