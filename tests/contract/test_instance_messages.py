"""Records, states, events and link frames: what is sound passes, what no instance of ours writes does not."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as own
from triptych_contract.codec import decode_binary, decode_json, encode_binary, encode_json
from triptych_contract.errors import BadRequest
from triptych_contract.handover import (
    EmbeddingHead,
    EmbeddingManifest,
    Hello,
    LinkClass,
    LinkFrame,
    Manifest,
    ManifestBlock,
    Pull,
    PullEmbeddings,
    Refused,
    Released,
    Renew,
    Renewed,
    Taken,
    WantedBlock,
    Welcome,
)
from triptych_contract.ids import is_host, is_id, is_name, random_id
from triptych_contract.instance import (
    FullState,
    InstanceRecord,
    InstanceState,
    KVRemoved,
    KVStored,
    Load,
    LoadSample,
    StateEvent,
)
from triptych_contract.roles import Phase, Role, Stage

RECORD = InstanceRecord("p-0", "0" * 32, "laptop", "127.0.0.1", 8001, 9001)
STATE = InstanceState("p-0", "0" * 32, "laptop", (Stage.PREFILL,), Role.PREFILL, 3, Phase.SERVING)
EVENTS = (FullState(1, STATE), Load(2, LoadSample(step=5)), KVStored(3, ("ab",), "cd"), KVRemoved(4, ("ab",)))
FRAMES = (
    Hello("secret", "d-0", LinkClass("tcp", "2x32x8", "float32", "f")),
    Welcome("p-0"),
    Pull("0" * 32, (WantedBlock(0, b"h" * 32, 32), WantedBlock(1, b"", 5))),
    Manifest("0" * 32, (ManifestBlock(0, b"h" * 32, 0, 32, 512),)),
    PullEmbeddings("0" * 32, ("ab" * 32,)),
    EmbeddingManifest("0" * 32, (EmbeddingHead("ab" * 32, 4, "float32", 64),)),
    Renew("0" * 32),
    Renewed("0" * 32, 2000),
    Taken("0" * 32),
    Released("0" * 32),
    Refused("handover_refused", "No such lease."),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_state_event_is_read_back_from_one_line(event):
    line = encode_json(event)
    assert b"\n" not in line
    assert decode_json(line, StateEvent) == event


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_every_link_frame_is_read_back(frame):
    assert decode_binary(encode_binary(frame), LinkFrame) == frame


def test_the_tables_above_name_every_event_and_frame():
    assert {type(event) for event in EVENTS} == set(get_args(StateEvent))
    assert {type(frame) for frame in FRAMES} == set(get_args(LinkFrame))


def test_a_frame_with_an_unknown_tag_is_refused():
    for tag in ("", "state", "HELLO", None, 1):
        with pytest.raises(BadRequest):
            decode_binary(msgspec.msgpack.encode({"type": tag, "lease": "x"}), LinkFrame)


@given(record=own.records)
def test_a_sound_record_passes_its_check(record):
    record.check()


BAD = {
    "empty id": {"id": ""},
    "path in the id": {"id": "../x"},
    "slash in the id": {"id": "a/b"},
    "hidden file as the id": {"id": ".a"},
    "long id": {"id": "a" * 129},
    "line break in the service": {"service": "a\nb"},
    "URL as the host": {"host": "http://h"},
    "blank host": {"host": " "},
    "short incarnation": {"incarnation": "0"},
    "port 0": {"http_port": 0},
    "port past 16 bits": {"http_port": 70_000},
    "negative link port": {"kv_port": -1},
    "unknown dialect": {"dialect": "other"},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_a_record_that_no_instance_of_ours_writes_is_refused(changes):
    with pytest.raises(BadRequest):
        msgspec.structs.replace(RECORD, **changes).check()


def test_messages_cannot_be_changed_after_they_were_made():
    for message in (RECORD, STATE, *EVENTS, *FRAMES):
        with pytest.raises(AttributeError):
            message.id = "other"


def test_random_ids_are_ids_and_do_not_repeat():
    found = [random_id() for _ in range(1000)]
    assert all(is_id(one) and is_name(one) for one in found)
    assert len(set(found)) == 1000


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1", "localhost", "p-0.pool.svc.cluster.local"])
def test_addresses_and_names_of_hosts_are_hosts(host):
    assert is_host(host)


@given(text=st.text(max_size=30))
def test_names_and_hosts_never_hold_what_changes_a_path_a_header_or_a_log_line(text):
    if is_name(text) or is_host(text):
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set("/\\ @\"'<>|$`;&#?%") - ({"@"} if is_name(text) else set())
    if is_id(text):
        assert is_name(text)
