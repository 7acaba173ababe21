"""The spliced object of a body becomes exactly one leg, or one error; a client never names one."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as own
from triptych_contract.errors import BadRequest, Forbidden, PayloadTooLarge
from triptych_contract.handover import (
    MAX_TTL_MS,
    DecodeLeg,
    EncodeLeg,
    LinkClass,
    LocalLeg,
    PrefillLeg,
    Ticket,
    parse_leg,
)

TICKET = Ticket(
    remote_engine_id="p-0",
    remote_request_id="r-1",
    remote_host="127.0.0.1",
    remote_port=7000,
    remote_num_tokens=12,
    remote_blocks_expiry_time=1.5,
    lease="0123456789abcdef" * 2,
    ttl_ms=30_000,
    fingerprint="00112233445566778",
)
EMBEDDINGS = {
    "remote_engine_id": "e-0",
    "remote_host": "127.0.0.1",
    "remote_port": 7001,
    "lease": "f" * 32,
    "ttl_ms": 30_000,
    "digests": ["ab" * 32],
}


def transfer(value, *, trusted=True):
    return parse_leg(json.dumps(value).encode(), None, trusted=trusted)


def extension(value, *, trusted=True):
    return parse_leg(None, json.dumps(value).encode(), trusted=trusted)


def ticket_with(**changes):
    return msgspec.to_builtins(TICKET) | changes


def embeddings_with(**changes):
    return EMBEDDINGS | changes


def test_a_body_without_hand_over_members_is_served_here_by_anyone():
    assert parse_leg(None, None, trusted=False) == parse_leg(None, None, trusted=True) == LocalLeg()


@pytest.mark.parametrize("read", [transfer, extension])
@pytest.mark.parametrize("value", [{}, {"do_remote_decode": True}, {"encode": True}, [], "x", 0])
def test_a_caller_without_the_token_may_not_name_a_member_whatever_is_in_it(read, value):
    with pytest.raises(Forbidden):
        read(value, trusted=False)


def test_bytes_of_an_untrusted_member_are_not_even_read():
    with pytest.raises(Forbidden):
        parse_leg(b"[" * 1_000_000, None, trusted=False)


def test_each_object_gives_its_leg():
    assert transfer({"do_remote_decode": True}) == PrefillLeg()
    assert extension({"encode": True}) == EncodeLeg()
    assert transfer(msgspec.to_builtins(TICKET)) == DecodeLeg(TICKET)
    assert transfer({"do_remote_decode": True, "embeddings": EMBEDDINGS}).embeddings.digests == ("ab" * 32,)
    assert isinstance(extension({"embeddings": EMBEDDINGS}), LocalLeg)
    assert extension({"embeddings": EMBEDDINGS}).embeddings.remote_engine_id == "e-0"


def test_a_leg_that_keeps_something_takes_the_lease_that_the_caller_chose():
    lease = "0123456789abcdef" * 2
    assert transfer({"do_remote_decode": True, "lease": lease}) == PrefillLeg(lease=lease)
    assert extension({"encode": True, "lease": lease}) == EncodeLeg(lease=lease)
    assert transfer({"do_remote_decode": True, "lease": None}) == PrefillLeg(lease="")
    assert transfer(msgspec.to_builtins(TICKET)) == DecodeLeg(TICKET), "a ticket's lease is the ticket's"


@pytest.mark.parametrize("lease", ["", "x", "G" * 32, "A" * 32, "0" * 31, "0" * 33, "../" + "0" * 29, 7, ["0" * 32]])
def test_a_lease_that_is_no_id_is_refused(lease):
    for read, leg in ((transfer, {"do_remote_decode": True}), (extension, {"encode": True})):
        with pytest.raises(BadRequest):
            read({**leg, "lease": lease})


def test_only_a_leg_that_keeps_something_names_a_lease():
    with pytest.raises(BadRequest):
        extension({"embeddings": EMBEDDINGS, "lease": "0" * 32})


@pytest.mark.parametrize("value", [{}, {"do_remote_decode": False}, {"do_remote_decode": None}])
def test_a_transfer_that_asks_for_nothing_is_served_here(value):
    assert transfer(value) == LocalLeg()
    assert extension({}) == LocalLeg()


def test_null_stands_for_an_absent_optional_member():
    nulls = {"do_remote_prefill": None, "embeddings": None, "remote_host": None, "remote_port": None}
    assert transfer({"do_remote_decode": True} | nulls) == PrefillLeg()
    assert extension({"encode": None, "embeddings": None, "resume": None}) == LocalLeg()


def test_unknown_members_of_a_newer_router_are_ignored():
    assert transfer({"do_remote_decode": True, "colour": "blue"}) == PrefillLeg()
    assert transfer(ticket_with(colour="blue")) == DecodeLeg(TICKET)


CONTRADICTIONS = {
    "both directions": {"do_remote_decode": True, "do_remote_prefill": True},
    "embeddings without a prefill": {"embeddings": EMBEDDINGS},
    "embeddings beside a ticket": ticket_with(embeddings=EMBEDDINGS),
    "a ticket without its members": {"do_remote_prefill": True},
}


@pytest.mark.parametrize("value", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_contradictory_transfer_is_refused(value):
    with pytest.raises(BadRequest):
        transfer(value)


def test_two_hand_over_objects_in_one_body_are_refused():
    with pytest.raises(BadRequest):
        parse_leg(b'{"do_remote_decode": true}', b'{"encode": true}', trusted=True)


def test_an_encode_leg_takes_no_embeddings_and_false_is_not_a_way_to_ask_for_one():
    with pytest.raises(BadRequest):
        extension({"encode": True, "embeddings": EMBEDDINGS})
    with pytest.raises(BadRequest):
        extension({"encode": False})


def test_a_resume_is_refused_in_words_and_not_ignored():
    with pytest.raises(BadRequest, match="resume"):
        extension({"resume": {"choices": []}})


BAD_TICKETS = {
    "short lease": ticket_with(lease="ab"),
    "upper-case lease": ticket_with(lease="A" * 32),
    "path as an engine id": ticket_with(remote_engine_id="../x"),
    "line break in an engine id": ticket_with(remote_engine_id="a\nb"),
    "URL as a host": ticket_with(remote_host="http://127.0.0.1/"),
    "host with user part": ticket_with(remote_host="a@b"),
    "empty host": ticket_with(remote_host=""),
    "port 0": ticket_with(remote_port=0),
    "port past 16 bits": ticket_with(remote_port=65536),
    "no tokens": ticket_with(remote_num_tokens=0),
    "negative tokens": ticket_with(remote_num_tokens=-5),
    "no life": ticket_with(ttl_ms=0),
    "endless life": ticket_with(ttl_ms=MAX_TTL_MS + 1),
    "a number for the lease": ticket_with(lease=5),
    "null for the lease": ticket_with(lease=None),
}


@pytest.mark.parametrize("value", BAD_TICKETS.values(), ids=BAD_TICKETS.keys())
def test_a_ticket_out_of_bounds_is_refused(value):
    with pytest.raises(BadRequest):
        transfer(value)


BAD_EMBEDDINGS = {
    "no digest": embeddings_with(digests=[]),
    "short digest": embeddings_with(digests=["ab"]),
    "a digest that is no hex": embeddings_with(digests=["zz" * 32]),
    "too many": embeddings_with(digests=["ab" * 32] * 65),
    "bad lease": embeddings_with(lease=""),
    "bad port": embeddings_with(remote_port=-1),
    "bad host": embeddings_with(remote_host="a/b"),
    "endless life": embeddings_with(ttl_ms=MAX_TTL_MS + 1),
}


@pytest.mark.parametrize("value", BAD_EMBEDDINGS.values(), ids=BAD_EMBEDDINGS.keys())
@pytest.mark.parametrize(
    "read", [lambda e: extension({"embeddings": e}), lambda e: transfer({"do_remote_decode": True, "embeddings": e})]
)
def test_an_embedding_ticket_out_of_bounds_is_refused_on_every_leg(read, value):
    with pytest.raises(BadRequest):
        read(value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"[" * 60_000, b'{"do_remote_decode": 1}', b"\xff"])
def test_a_member_that_is_no_such_object_is_refused(raw):
    with pytest.raises(BadRequest):
        parse_leg(raw, None, trusted=True)


def test_a_member_has_a_size_bound():
    with pytest.raises(PayloadTooLarge):
        transfer({"x": "y" * 70_000})
    with pytest.raises(PayloadTooLarge):
        extension({"x": "y" * (1 << 20)})


@given(ticket=own.tickets)
def test_a_ticket_that_an_engine_writes_is_read_back_as_a_decode_leg(ticket):
    assert parse_leg(msgspec.json.encode(ticket), None, trusted=True) == DecodeLeg(ticket)


@given(embeddings=own.embedding_tickets)
def test_an_embedding_ticket_is_read_back_by_both_of_its_legs(embeddings):
    raw = msgspec.json.encode(embeddings)
    assert extension({"embeddings": json.loads(raw)}) == LocalLeg(embeddings)
    assert transfer({"do_remote_decode": True, "embeddings": json.loads(raw)}) == PrefillLeg(embeddings)


@given(value=own.json_values, name=st.sampled_from(["do_remote_decode", "do_remote_prefill", "encode", "embeddings"]))
def test_whatever_stands_in_a_member_the_answer_is_a_leg_or_a_bad_request(value, name):
    for read in (transfer, extension):
        for body in (value, {name: value}):
            try:
                leg = read(body)
            except BadRequest:
                continue
            assert isinstance(leg, LocalLeg | PrefillLeg | EncodeLeg)


def test_only_equal_link_classes_have_an_equal_digest():
    one = LinkClass(connector="tcp", layout="2x32x8", kv_dtype="float32", fingerprint="f")
    assert one.digest() == LinkClass(connector="tcp", layout="2x32x8", kv_dtype="float32", fingerprint="f").digest()
    others = [
        msgspec.structs.replace(one, **{field: "other"}) for field in ("connector", "layout", "kv_dtype", "fingerprint")
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 5
    assert len(one.digest()) == 16
