"""Too many tokens for the pool: the latest arrival waits, and nobody's text changes."""

import pytest

from fakes.core_harness import CoreHarness, make_submit, sim_config
from triptych_contract.sampling import SamplingParams
from triptych_engine.messages import LeaseGranted, Mode, ReleaseLease, Submit

LONG = SamplingParams(temperature=0.8, seed=2, max_tokens=200)


def ask(number: int, *, prompt_tokens: int = 40) -> Submit:
    prompt = [32 + (number * 11 + position) % 90 for position in range(prompt_tokens)]
    return make_submit(prompt, request_id=f"r{number}", sampling=LONG, eos=())


def test_preempted_requests_say_what_they_say_alone() -> None:
    harness = CoreHarness(sim_config(kv_blocks=20))
    for number in range(4):
        harness.tell(ask(number))
    harness.run()
    assert harness.stats().preemptions > 0
    harness.check_empty()
    for number in range(4):
        assert harness.tokens[f"r{number}", 0] == CoreHarness().generate(ask(number))


def test_the_earliest_arrival_is_never_preempted() -> None:
    harness = CoreHarness(sim_config(kv_blocks=20))
    for number in range(4):
        harness.tell(ask(number))
    for step in range(200):
        harness.step()
        assert len(harness.tokens["r0", 0]) == step + 1


def test_choices_of_one_request_may_be_preempted_too() -> None:
    submit = make_submit(list(range(40, 80)), sampling=SamplingParams(seed=5, n=6, max_tokens=150), eos=())
    tight, wide = CoreHarness(sim_config(kv_blocks=16)), CoreHarness(sim_config(kv_blocks=200))
    tight.generate(submit)
    wide.generate(submit)
    assert tight.stats().preemptions > 0
    assert tight.tokens == wide.tokens
    tight.check_empty()


def test_a_preempted_request_finds_its_own_blocks_in_the_cache() -> None:
    harness = CoreHarness(sim_config(kv_blocks=20))
    for number in range(4):
        harness.tell(ask(number))
    harness.run()
    assert harness.stats().prompt_tokens < 2 * 4 * 40


class TestLeases:
    """Blocks of leases may take a share of the pool; above it prefill legs wait."""

    @staticmethod
    def leg(number: int, *, prompt_tokens: int = 320) -> Submit:
        return make_submit(
            [32 + (number * 13 + position) % 90 for position in range(prompt_tokens)],
            request_id=f"p{number}",
            mode=Mode.PREFILL,
            lease=f"lease{number}",
        )

    def test_a_prefill_leg_waits_until_leases_are_below_their_share(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=64, max_batch_tokens=4096))
        harness.tell(*(self.leg(number) for number in range(5)))
        harness.run()
        assert len(harness.take(LeaseGranted)) == 3
        assert harness.stats().blocks.in_transfer == 30
        assert harness.stats().waiting == 2
        harness.tell(ReleaseLease(lease="lease0"))
        harness.run()
        assert [granted.lease for granted in harness.take(LeaseGranted)] == ["lease3"]

    def test_other_requests_go_past_a_prefill_leg_that_waits_for_leases(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=64, max_batch_tokens=4096))
        harness.tell(*(self.leg(number) for number in range(4)))
        assert harness.generate(ask(1))

    def test_a_prompt_above_the_share_goes_alone(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=64, max_batch_tokens=4096))
        harness.tell(self.leg(1, prompt_tokens=1500), self.leg(2, prompt_tokens=64))
        harness.run()
        assert [granted.lease for granted in harness.take(LeaseGranted)] == ["lease1"]
        harness.tell(ReleaseLease(lease="lease1"))
        harness.run()
        assert [granted.lease for granted in harness.take(LeaseGranted)] == ["lease2"]

    def test_a_prefill_leg_has_all_its_blocks_before_it_starts(self) -> None:
        harness = CoreHarness(sim_config(kv_blocks=64, max_batch_tokens=32))
        harness.tell(self.leg(1))
        harness.step()
        assert harness.stats().blocks.held == 10

    @pytest.mark.parametrize("count", [1, 3])
    def test_leases_of_one_prompt_share_its_blocks(self, count: int) -> None:
        harness = CoreHarness(sim_config(kv_blocks=64))
        for number in range(count):
            harness.tell(make_submit([65] * 64, request_id=f"p{number}", mode=Mode.PREFILL, lease=f"lease{number}"))
            harness.run()
        assert harness.stats().blocks.in_transfer == 2
        for number in range(count):
            harness.tell(ReleaseLease(lease=f"lease{number}"))
        harness.check_empty()
