"""What of a stream reaches the client, and what the ledger then counts as delivered."""

from collections.abc import AsyncIterator, Mapping

import pytest

from triptych_router.dispatch.ledger import Ledger
from triptych_router.dispatch.relay import relay_events
from triptych_router.dispatch.retry import Cause, LegFailed

DATA = b'data: {"choices":[]}\n\n'
DONE = b"data: [DONE]\n\n"


class Answer:
    """An instance's answer that comes in these chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks
        self.content = self

    async def iter_any(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


class Client:
    """What a client got, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.ended = False

    @property
    def started(self) -> bool:
        return bool(self.writes)

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        raise AssertionError("a stream is no whole answer")

    async def events(self, data: bytes, _headers: Mapping[str, str]) -> None:
        self.writes.append(data)

    async def end(self) -> None:
        self.ended = True


async def relay(*chunks: bytes) -> tuple[Client, Ledger]:
    client, ledger = Client(), Ledger()
    ended = await relay_events(Answer(*chunks), client, ledger, headers={}, first=lambda: None)  # type: ignore[arg-type]
    assert ended is None
    return client, ledger


async def test_the_events_of_one_read_go_out_in_one_write_without_their_ledger_lines() -> None:
    client, ledger = await relay(b": v1 0 0 7 a\n" + DATA + b": v1 0 1 8 b\n" + DATA, DONE)
    assert client.writes == [DATA + DATA, DONE]
    assert client.ended
    assert ledger.tokens == 2


async def test_a_token_without_text_is_delivered_although_the_client_gets_nothing_of_it() -> None:
    client, ledger = await relay(b": v1 0 0 7 a\n\n", b": v1 0 1 8 b\n" + DATA + DONE)
    assert client.writes == [DATA + DONE]
    delivered = ledger.delivered()
    assert delivered is not None
    assert delivered[0].token_ids == (7, 8)


@pytest.mark.parametrize("cut", [b"", DATA[:9]], ids=["between events", "amid an event"])
async def test_a_stream_that_breaks_off_is_a_failed_leg_and_its_tail_is_dropped(cut: bytes) -> None:
    client = Client()
    with pytest.raises(LegFailed) as failed:
        await relay_events(Answer(DATA, cut), client, Ledger(), headers={}, first=lambda: None)  # type: ignore[arg-type]
    assert (failed.value.cause, failed.value.delivered) == (Cause.DIED, True)
    assert client.writes == [DATA]


@pytest.mark.parametrize("text", [r"\"error\"", "error", r"data: {\"error\":", "data: [DONE]"])
async def test_words_of_the_protocol_in_a_text_mean_nothing(text: str) -> None:
    event = b'data: {"choices":[{"text":"' + text.encode() + b'"}]}\n\n'
    client, _ = await relay(event, DONE)
    assert client.writes == [event, DONE]
