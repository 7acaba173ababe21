"""The ledger comment: what is written is read back, what is damaged is not guessed at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as own
from triptych_contract.ledger import MAX_LINE_BYTES, PREFIX, LedgerEntry, format_entry, parse_entry, split_event


@given(entry=own.ledger_entries)
def test_an_entry_is_read_back_as_it_was_written(entry):
    line = format_entry(entry)
    assert line.startswith(PREFIX)
    assert line.count(b"\n") == 1
    assert parse_entry(line) == entry
    assert parse_entry(line.rstrip(b"\n")) == entry


@given(entry=own.ledger_entries, payload=st.binary(max_size=50))
def test_the_comment_is_cut_off_and_the_rest_of_the_event_stays_as_it_is(entry, payload):
    event = b"data: " + payload + b"\n\n"
    line, rest = split_event(format_entry(entry) + event)
    assert (parse_entry(line), rest) == (entry, event)
    assert split_event(event) == (None, event)


def test_an_example_of_the_line():
    assert format_entry(LedgerEntry(0, 7, (15, 16), "c1")) == b": v1 0 7 15 16 c1\n"
    assert format_entry(LedgerEntry(1, 0, (), "9")) == b": v1 1 0 9\n"
    assert parse_entry(b": v1 1 0 9\n") == LedgerEntry(1, 0, (), "9")


@pytest.mark.parametrize("cursor", ["", " ", "a b", "a\n", "é", "\x00"])
def test_a_cursor_that_could_be_mistaken_is_never_written(cursor):
    with pytest.raises(ValueError, match="cursor"):
        format_entry(LedgerEntry(0, 0, (5,), cursor))


DAMAGED = {
    "another comment": b": ping\n",
    "another version": b": v2 0 0 5 c\n",
    "empty": b"",
    "nothing after the prefix": PREFIX,
    "no cursor": b": v1 0 0\n",
    "negative choice": b": v1 -1 0 5 c\n",
    "negative position": b": v1 0 -1 5 c\n",
    "negative token": b": v1 0 0 -5 c\n",
    "signed token": b": v1 0 0 +5 c\n",
    "underscored token": b": v1 0 0 1_000 c\n",
    "a word among the ids": b": v1 0 0 5 x 6 c\n",
    "a huge number": b": v1 0 0 " + b"9" * 5000 + b" c\n",
    "control characters in the cursor": b": v1 0 0 5 \x1b[31m\n",
    "not ASCII": b": v1 0 0 5 \xff\n",
    "too long": b": v1 0 0 " + b"1 " * (MAX_LINE_BYTES // 2) + b"c\n",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_no_entry(line):
    assert parse_entry(line) is None


@given(line=st.binary(max_size=60))
def test_random_bytes_after_the_prefix_never_raise(line):
    entry = parse_entry(PREFIX + line)
    assert entry is None or parse_entry(format_entry(entry)) == entry


def test_a_comment_without_its_newline_is_left_in_the_event():
    assert split_event(b": v1 0 0 5 c") == (None, b": v1 0 0 5 c")
