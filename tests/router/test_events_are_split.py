"""Server-sent events out of chunks cut anywhere, and the journal of what was delivered."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import ledger_entries
from triptych_contract.errors import Internal, UpstreamFailed
from triptych_contract.ledger import LedgerEntry, format_entry, split_event
from triptych_router.api.sse import EventSplitter, error_events, error_of, is_done
from triptych_router.dispatch.ledger import Ledger

payloads = st.from_regex(r"[ -~]{0,40}", fullmatch=True).map(str.encode)
events = st.lists(
    st.builds(
        lambda line, data, end: (format_entry(line) if line else b"") + b"data: " + data + end,
        st.none() | ledger_entries,
        payloads,
        st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    ),
    max_size=8,
)


@given(events=events, cuts=st.lists(st.integers(0, 10_000), max_size=12), tail=payloads)
def test_events_come_whole_however_the_bytes_are_cut(events: list[bytes], cuts: list[int], tail: bytes) -> None:
    """Any chunk borders give the same events; an unfinished tail gives none."""
    stream = b"".join(events) + tail
    borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    splitter = EventSplitter()
    got = [event for first, last in pairwise(borders) for event in splitter.feed(stream[first:last])]
    assert got == events
    assert splitter.pending_bytes == len(tail)


def test_one_byte_at_a_time_is_the_same() -> None:
    splitter = EventSplitter()
    stream = b": v1 0 0 5 c\r\ndata: a\r\n\r\ndata: b\n\n"
    got = [event for byte in stream for event in splitter.feed(bytes([byte]))]
    assert b"".join(got) == stream
    assert len(got) == 2


def test_an_event_without_an_end_is_bounded() -> None:
    splitter = EventSplitter(max_event_bytes=100)
    with pytest.raises(UpstreamFailed):
        splitter.feed(b"x" * 101)


def test_errors_and_ends_are_known() -> None:
    event = error_events(Internal("no"))
    first, done = EventSplitter().feed(event)
    assert isinstance(error_of(first), Internal)
    assert error_of(done) is None
    assert is_done(done)
    assert error_of(b'data: {"choices":[{"text":"\\"error\\":"}]}\n\n') is None


@given(groups=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8))
def test_the_ledger_gives_back_what_was_delivered(groups: list[list[int]]) -> None:
    ledger, at = Ledger(), 0
    for number, ids in enumerate(groups):
        line, _ = split_event(format_entry(LedgerEntry(0, at, tuple(ids), f"c{number}")) + b"data: x\n\n")
        assert line is not None
        ledger.record(line)
        at += len(ids)
    assert ledger.tokens == at
    delivered = ledger.delivered()
    assert delivered is not None
    if groups:
        assert delivered[0].token_ids == tuple(i for ids in groups for i in ids)
        assert delivered[0].cursor == f"c{len(groups) - 1}"


def test_a_gap_or_too_many_bytes_make_a_request_not_resumable() -> None:
    gap = Ledger()
    gap.record(b": v1 0 1 7 c")
    assert gap.delivered() is None
    small = Ledger(max_bytes=20)
    for position in range(5):
        small.record(b": v1 0 %d 7 c" % position)
    assert small.delivered() is None
    assert small.tokens == 5
    assert small.size_bytes == 0
