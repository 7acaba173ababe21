"""PREFILL in one core and PULL in another: the same text as SERVE in one, for one computed token."""

from collections.abc import Callable

import pytest

from fakes.core_harness import CoreHarness, copy_blocks, hand_over, make_submit, prefill, sim_config
from triptych_contract.hashing import MediaSpan
from triptych_contract.sampling import SamplingParams
from triptych_engine.messages import (
    Cancel,
    Embedding,
    FinishReason,
    LeaseGranted,
    Mode,
    PullEnded,
    PullWanted,
    Rejected,
    ReleaseLease,
    Submit,
)

PROMPT = [35 + position * 7 % 80 for position in range(300)]
TWENTY = SamplingParams(temperature=0.9, seed=4, max_tokens=20)


def ask(length: int = 100, **changes: object) -> Submit:
    return make_submit(PROMPT[:length], sampling=TWENTY, **changes)  # type: ignore[arg-type]


def pull(length: int = 100, **changes: object) -> Submit:
    return ask(length, mode=Mode.PULL, lease="lease", **changes)


def serve(submit: Submit) -> list[int]:
    return CoreHarness().generate(submit)


def granted_and_wanted(consumer: CoreHarness, length: int = 100) -> tuple[CoreHarness, LeaseGranted, PullWanted]:
    """A computed prefill leg, and what the consumer asks for."""
    producer = CoreHarness()
    granted = prefill(producer, ask(length, request_id="p", mode=Mode.PREFILL, lease="lease"))
    consumer.tell(pull(length))
    consumer.run()
    (wanted,) = consumer.take(PullWanted)
    return producer, granted, wanted


@pytest.mark.parametrize("length", [2, 31, 32, 33, 64, 100, 300])
@pytest.mark.parametrize("token_bytes", [8, 64])
def test_the_text_is_that_of_one_core_for_one_computed_token(length: int, token_bytes: int) -> None:
    config = sim_config(token_bytes=token_bytes)
    producer, consumer = CoreHarness(config), CoreHarness(config)
    assert hand_over(producer, consumer, ask(length)) == CoreHarness(config).generate(ask(length))
    stats = consumer.stats()
    assert (stats.tokens_recomputed, stats.prompt_tokens) == (1, 1)
    assert producer.stats().generation_tokens == 0
    producer.check_empty()
    consumer.check_empty()


def test_several_choices_pull_once_and_compute_one_prompt_token() -> None:
    submit = make_submit(PROMPT[:100], sampling=SamplingParams(seed=9, n=4, max_tokens=20))
    consumer, alone = CoreHarness(), CoreHarness()
    hand_over(CoreHarness(), consumer, submit)
    alone.generate(submit)
    assert consumer.tokens == alone.tokens
    assert consumer.stats().tokens_recomputed == 1
    consumer.check_empty()


def test_the_lease_keeps_its_blocks_in_transfer_until_it_is_released() -> None:
    producer = CoreHarness()
    granted = prefill(producer, ask(100, mode=Mode.PREFILL, lease="lease"))
    assert (granted.num_tokens, len(granted.blocks), len(granted.identities)) == (100, 4, 3)
    stats = producer.stats()
    assert (stats.blocks.in_transfer, stats.blocks.held, stats.leases) == (4, 0, 1)
    producer.tell(Cancel(id="r"))
    producer.run()
    assert producer.stats().blocks.in_transfer == 4, "the lease belongs to the server, not to the request"
    producer.tell(ReleaseLease(lease="lease"), ReleaseLease(lease="lease"), ReleaseLease(lease="unknown"))
    producer.check_empty()


def test_blocks_that_are_here_already_are_not_asked_for() -> None:
    consumer = CoreHarness()
    consumer.generate(make_submit(PROMPT[:64], request_id="earlier"))
    producer, granted, wanted = granted_and_wanted(consumer)
    assert [(one.index, one.tokens, bool(one.identity)) for one in wanted.blocks] == [(2, 32, True), (3, 4, False)]
    received = copy_blocks(source=producer, granted=granted, target=consumer, wanted=wanted.blocks)
    consumer.tell(PullEnded(id="r", ok=True, received=received))
    consumer.run()
    assert consumer.tokens["r", 0] == serve(ask())


def test_a_prompt_that_is_here_whole_only_gives_the_lease_back() -> None:
    consumer = CoreHarness()
    consumer.generate(make_submit(PROMPT[:64], request_id="earlier"))
    consumer.tell(pull(64))
    consumer.run()
    (wanted,) = consumer.take(PullWanted)
    assert (wanted.lease, wanted.blocks) == ("lease", ())
    assert consumer.tokens["r", 0] == serve(ask(64))
    assert consumer.stats().tokens_recomputed == 1


def test_received_full_blocks_are_reusable_and_only_after_the_pull() -> None:
    consumer = CoreHarness()
    producer, granted, wanted = granted_and_wanted(consumer)
    assert consumer.stats().blocks.held == 4
    received = copy_blocks(source=producer, granted=granted, target=consumer, wanted=wanted.blocks)
    consumer.tell(PullEnded(id="r", ok=True, received=received))
    before = consumer.stats().prompt_tokens
    consumer.tell(make_submit(PROMPT[:100], request_id="second"))
    consumer.run()
    assert consumer.stats().prompt_tokens - before == 1 + 4


def test_a_failed_pull_is_computed_here() -> None:
    consumer = CoreHarness()
    _, _, wanted = granted_and_wanted(consumer)
    for one in wanted.blocks:
        consumer.block(one.block)[:] = b"\xee" * consumer.layout.block_bytes
    consumer.tell(PullEnded(id="r", ok=False, reason="checksum"))
    consumer.run()
    assert consumer.tokens["r", 0] == serve(ask())
    assert consumer.stats().tokens_recomputed == 100
    consumer.check_empty()


def test_blocks_behind_a_missing_one_are_not_used() -> None:
    consumer = CoreHarness()
    producer, granted, wanted = granted_and_wanted(consumer)
    copy_blocks(source=producer, granted=granted, target=consumer, wanted=wanted.blocks)
    consumer.tell(PullEnded(id="r", ok=True, received=(0, 2, 3)))
    consumer.run()
    assert consumer.tokens["r", 0] == serve(ask())
    assert consumer.stats().tokens_recomputed == 100 - 32


def expire(consumer: CoreHarness) -> None:
    consumer.clock.advance(60.0)
    consumer.step()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param(lambda consumer: consumer.tell(Cancel(id="r")), FinishReason.CANCELLED, id="cancelled"),
        pytest.param(lambda consumer: consumer.tell(Cancel(id="r", choice=0)), FinishReason.CANCELLED, id="choice"),
        pytest.param(expire, FinishReason.DEADLINE, id="deadline"),
    ],
)
@pytest.mark.parametrize("ok", [True, False])
def test_blocks_of_an_ended_pull_stay_held_until_nobody_writes_to_them(
    end: Callable[[CoreHarness], None], reason: FinishReason, ok: bool
) -> None:
    consumer = CoreHarness()
    consumer.tell(pull(deadline_s=consumer.clock.now_s() + 30))
    consumer.run()
    end(consumer)
    consumer.run()
    assert consumer.ends == {("r", 0): reason}
    assert consumer.stats().blocks.held == 4
    consumer.tell(PullEnded(id="r", ok=ok, received=(0, 1, 2, 3)))
    consumer.run()
    consumer.check_empty()
    assert consumer.stats().blocks.cached == 0, "what arrived for nobody is not kept"


def test_a_producer_that_computed_another_prompt_is_not_asked() -> None:
    consumer = CoreHarness()
    consumer.tell(Submit(**{**_fields(pull()), "remote_num_tokens": 99}))
    consumer.run()
    (wanted,) = consumer.take(PullWanted)
    assert wanted.blocks == ()
    assert consumer.tokens["r", 0] == serve(ask())


def test_pulls_start_while_a_long_prompt_takes_every_token_of_the_step() -> None:
    consumer = CoreHarness(sim_config(kv_blocks=200, max_batch_tokens=32))
    consumer.tell(make_submit(PROMPT * 3, request_id="long"))
    consumer.step()
    consumer.tell(pull())
    consumer.step()
    assert [wanted.id for wanted in consumer.take(PullWanted)] == ["r"]


def _fields(submit: Submit) -> dict[str, object]:
    return {name: getattr(submit, name) for name in submit.__struct_fields__}


class TestImages:
    """A prompt with an image: its embeddings stand for its tokens."""

    @staticmethod
    def with_image(harness: CoreHarness, submit: Submit, *, embedded: bool = True) -> Submit:
        span = MediaSpan(digest=b"d" * 32, first=40, count=8)
        data = harness.executor.encode(b"an image", span.count)
        embedding = Embedding(digest=span.digest, first=span.first, count=span.count, data=data)
        fields = _fields(submit) | {"media": (span,), "embeddings": (embedding,) if embedded else ()}
        return Submit(**fields)

    def test_the_image_shows_in_the_text(self) -> None:
        harness = CoreHarness()
        plain = harness.generate(ask(request_id="plain"))
        assert harness.generate(self.with_image(harness, ask(request_id="image"))) != plain
        assert harness.stats().prefix_hits == 32, "blocks of the image are not those of the plain prompt"

    @pytest.mark.parametrize("max_batch_tokens", [1, 45, 512])
    def test_the_chunk_size_does_not_show(self, max_batch_tokens: int) -> None:
        harness = CoreHarness(sim_config(max_batch_tokens=max_batch_tokens))
        reference = CoreHarness()
        assert harness.generate(self.with_image(harness, ask())) == reference.generate(
            self.with_image(reference, ask())
        )

    def test_a_decode_leg_needs_no_embeddings_when_the_pull_succeeds(self) -> None:
        producer, consumer, reference = CoreHarness(), CoreHarness(), CoreHarness()
        leg = self.with_image(producer, ask(request_id="p", mode=Mode.PREFILL, lease="lease"))
        granted = prefill(producer, leg)
        consumer.tell(self.with_image(consumer, pull(), embedded=False))
        consumer.run()
        (wanted,) = consumer.take(PullWanted)
        received = copy_blocks(source=producer, granted=granted, target=consumer, wanted=wanted.blocks)
        consumer.tell(PullEnded(id="r", ok=True, received=received))
        consumer.run()
        assert consumer.tokens["r", 0] == reference.generate(self.with_image(reference, ask()))

    def test_a_decode_leg_without_embeddings_ends_with_an_error_when_the_pull_fails(self) -> None:
        consumer = CoreHarness()
        consumer.tell(self.with_image(consumer, pull(), embedded=False))
        consumer.run()
        consumer.tell(PullEnded(id="r", ok=False))
        consumer.run()
        assert [one.code for one in consumer.take(Rejected)] == ["handover_refused"]
        consumer.check_empty()

    def test_a_request_whose_embeddings_never_came_ends_with_an_error(self) -> None:
        harness = CoreHarness()
        harness.tell(self.with_image(harness, ask(), embedded=False))
        harness.run()
        assert [one.code for one in harness.take(Rejected)] == ["handover_refused"]
        harness.check_empty()
