"""Decoding is typed and bounded: whatever arrives, it is a message of the named type or one clean error."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as own
from triptych_contract.codec import MAX_MESSAGE_BYTES, decode_binary, decode_json, encode_binary, encode_json
from triptych_contract.errors import BadRequest, PayloadTooLarge
from triptych_contract.handover import LinkFrame
from triptych_contract.instance import InstanceRecord, InstanceState, RoleRequest, StateEvent

HOSTILE = {
    "empty": b"",
    "nested arrays": b"[" * 100_000,
    "nested objects": b'{"x":' * 100_000,
    "nested in a member": b'{"id":' + b"[" * 100_000,
    "NaN": b'{"role":"all","epoch":NaN}',
    "infinite": b'{"role":"all","epoch":1e400}',
    "past 64 bits": b'{"role":"all","epoch":36893488147419103232}',
    "past 53 bits": b'{"role":"all","epoch":9007199254740993}',
    "negative": b'{"role":"all","epoch":-1}',
    "a bool for a number": b'{"role":"all","epoch":true}',
    "a string for a number": b'{"role":"all","epoch":"1"}',
    "an unknown role": b'{"role":"\\u001b[31m\\r\\nfake log line","epoch":1}',
    "an unknown member": b'{"role":"all","epoch":1,"extra":0}',
    "byte order mark": b'\xef\xbb\xbf{"role":"all","epoch":1}',
    "not UTF-8": b'{"role":"\xff","epoch":1}',
    "bytes after the end": b'{"role":"all","epoch":1} {}',
    "UTF-16": '{"role":"all","epoch":1}'.encode("utf-16"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_message_is_one_clean_error(data):
    with pytest.raises(BadRequest) as caught:
        decode_json(data, RoleRequest)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("decode", [decode_json, decode_binary])
def test_a_message_over_the_limit_is_refused_before_it_is_read(decode):
    assert decode(b"0", int, limit_bytes=1) == (0 if decode is decode_json else 48)
    with pytest.raises(PayloadTooLarge):
        decode(b"00", int, limit_bytes=1)
    with pytest.raises(PayloadTooLarge):
        decode(bytes(MAX_MESSAGE_BYTES + 1), int)


@given(data=st.binary(max_size=200), kind=st.sampled_from([RoleRequest, InstanceState, StateEvent, LinkFrame]))
def test_random_bytes_never_raise_anything_but_a_bad_request(data, kind):
    for decode in (decode_json, decode_binary):
        with contextlib.suppress(BadRequest):
            decode(data, kind)


@given(value=own.json_values)
def test_any_json_is_read_as_the_type_or_refused(value):
    try:
        found = decode_json(json.dumps(value).encode(), InstanceRecord)
    except BadRequest:
        return
    assert isinstance(found, InstanceRecord)


@given(record=own.records)
def test_a_record_survives_both_codings(record):
    assert decode_json(encode_json(record), InstanceRecord) == record
    assert decode_binary(encode_binary(record), InstanceRecord) == record


def test_unknown_members_of_a_newer_peer_are_ignored_where_it_is_a_record():
    fields = json.loads(encode_json(InstanceRecord("a", "0" * 32, "s", "127.0.0.1", 1, 2)))
    newer = fields | {"version": 2, "colour": "blue"}
    assert decode_json(json.dumps(newer).encode(), InstanceRecord).version == 2


def test_records_of_an_older_peer_may_lack_optional_members():
    oldest = {"id": "a", "incarnation": "0" * 32, "service": "s", "host": "h", "http_port": 1, "kv_port": 2}
    record = decode_json(json.dumps(oldest).encode(), InstanceRecord)
    assert (record.dialect, record.version) == ("triptych", 1)


def test_a_view_of_the_bytes_is_read_without_a_copy_by_the_caller():
    assert decode_json(memoryview(b"[1,2]"), list[int]) == [1, 2]
    assert decode_binary(bytearray(msgspec.msgpack.encode([1, 2])), list[int]) == [1, 2]
