"""Objects, noise and foreign protocols on every port; liars, idlers and repeaters on the KV link of a real engine."""

import asyncio
import os
import pickle
import random

import msgspec
import pytest

from fakes.fleet import Fleet
from fakes.hostile import Reply, peak_of, send_raw
from triptych_contract.handover import (
    MAX_FRAME_BYTES,
    Hello,
    LinkClass,
    LinkFrame,
    Manifest,
    Pull,
    PullEmbeddings,
    Refused,
    Released,
    Renew,
    Taken,
    WantedBlock,
    Welcome,
)

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("unharmed")]

LINK = LinkClass("tcp", "layout", "int64", "fingerprint")
LEASE = "0" * 32
LONELY_S = 8.0
"""The KV link gives a first frame five seconds."""


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


NOISE = {
    "a pickle": pickle.dumps(_Evil()),
    "a pickle in a frame": len(pickle.dumps(_Evil())).to_bytes(4, "little") + pickle.dumps(_Evil()),
    "random bytes": random.Random(4).randbytes(65536),
    "zeros": bytes(65536),
    "ones": b"\xff" * 65536,
    "HTTP": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "text": b"hello\n" * 100,
    "extension types": b"\x08\x00\x00\x00\xc7\x05\x01abcde",
}


def frame(message: object) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "little") + body


def raw(value: object) -> bytes:
    """A frame of whatever structure."""
    return frame(value)


def frames(data: bytes) -> list[object]:
    """What a producer has said."""
    found = []
    while data:
        length = int.from_bytes(data[:4], "little")
        found.append(msgspec.msgpack.decode(data[4 : 4 + length], type=LinkFrame))
        data = data[4 + length :]
    return found


def said(reply: Reply) -> list[object]:
    return frames(reply.head)


async def link_class(fleet: Fleet) -> LinkClass:
    """The link class of the fleet's engines, which a producer names when it refuses another one."""
    reply = await send_raw(fleet.children["prefill-0"].kv_port, frame(Hello(fleet.token, "x", LINK)), until_end=True)
    (refused,) = said(reply)
    assert isinstance(refused, Refused)
    pairs = refused.message.split(": ", 1)[1].rstrip(".").split("; ")
    values = {part.split(" ", 1)[0]: part.split(" ", 1)[1].split(" here, ")[0] for part in pairs}
    return msgspec.structs.replace(LINK, **values)


class TestNoise:
    @pytest.mark.parametrize("noise", NOISE)
    async def test_on_a_kv_port_is_closed_at_once(self, fleet: Fleet, noise: str) -> None:
        for name in ("prefill-0", "decode-0", "mixed-0"):
            reply = await send_raw(fleet.children[name].kv_port, NOISE[noise], b"\x01", until_end=True, deadline_s=8)
            assert reply.closed
            assert reply.head == b""

    @pytest.mark.parametrize("noise", [name for name in NOISE if name != "HTTP"])
    async def test_on_an_http_port_is_refused_and_closed(self, fleet: Fleet, noise: str) -> None:
        for name in ("router", "prefill-0", "mixed-0"):
            port = fleet.children[name].http_port
            reply = await send_raw(port, NOISE[noise], b"\r\n\r\n", until_end=True, deadline_s=14)
            assert reply.closed
            assert reply.status in (0, 400)

    async def test_as_a_body_is_a_clean_refusal(self, fleet: Fleet) -> None:
        for noise in NOISE.values():
            url = fleet.children["mixed-0"].url + "/instance/role"
            sent = {**fleet.auth, "content-type": "application/json"}
            async with fleet.http.post(url, data=noise[:4000], headers=sent) as answer:
                assert answer.status == 400


class TestGreetings:
    @pytest.mark.parametrize("token", ["", "x", "wrong" * 10, "\u00e9" * 40, "a" * 16_000])
    async def test_with_a_wrong_token_are_refused_and_closed(self, fleet: Fleet, token: str) -> None:
        for shown in (token, fleet.token[:-1], fleet.token + "a"):
            hello = frame(Hello(shown, "x", LINK))
            reply = await send_raw(fleet.children["prefill-0"].kv_port, hello, frame(Renew(LEASE)), until_end=True)
            assert reply.closed
            assert [answer.code for answer in said(reply) if isinstance(answer, Refused)] in (["invalid_api_key"], [])
            assert not any(isinstance(answer, Welcome) for answer in said(reply))

    @pytest.mark.parametrize(
        "value",
        [
            None,
            5,
            [],
            {"type": "hello"},
            {"type": "hello", "token": 5, "instance_id": "x", "link_class": {}},
            {"type": "hello", "token": b"bytes", "instance_id": "x", "link_class": None},
            {"type": "no such frame"},
            {"type": ["hello"]},
            {"type": "pull", "lease": LEASE, "blocks": [[0, b"", 1]]},
            {"token": "x"},
            [[[[[[[[]]]]]]]],
        ],
        ids=repr,
    )
    async def test_of_another_shape_are_closed(self, fleet: Fleet, value: object) -> None:
        reply = await send_raw(fleet.children["prefill-0"].kv_port, raw(value), until_end=True)
        assert reply.closed
        assert not any(isinstance(answer, Welcome) for answer in said(reply))

    async def test_over_their_bound_or_nested_without_end_are_closed_unread(self, fleet: Fleet) -> None:
        producer = fleet.children["prefill-0"]
        deep = b"\x91" * 16_000 + b"\xc0"
        announced = ((2**32 - 1, b"a"), (16 * 1024 + 1, bytes(16 * 1024 + 1)), (len(deep), deep), (0, b""))
        for length, body in announced:
            with peak_of(producer) as grown:
                sent = length.to_bytes(4, "little") + body
                reply = await send_raw(producer.kv_port, sent, until_end=True)
            assert reply.closed
            assert grown[0] < 16 << 20

    async def test_that_never_end_have_a_deadline(self, fleet: Fleet) -> None:
        """Nothing, half a length, half a frame, and a byte at a time."""
        port = fleet.children["prefill-0"].kv_port
        hello = frame(Hello(fleet.token, "x", LINK))
        drops = tuple(hello[at : at + 1] for at in range(40))
        manners = ((b"",), (b"\x10\x00",), (hello[:20],), drops)
        replies = await asyncio.gather(
            *(send_raw(port, *parts, pause_s=0.2, until_end=True, deadline_s=LONELY_S) for parts in manners)
        )
        assert all(reply.closed for reply in replies), replies


class TestFramesAfterTheGreeting:
    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(Pull(LEASE, ()), id="nothing of no lease"),
            pytest.param(Pull(LEASE, (WantedBlock(2**63 - 1, b"", 2**63 - 1),)), id="blocks far away"),
            pytest.param(Pull("../../etc/passwd", (WantedBlock(-1, b"", -1),)), id="a path for a lease"),
            pytest.param(Pull("x" * 100_000, ()), id="a long lease"),
            pytest.param(PullEmbeddings(LEASE, ("z" * 64, "..", "")), id="digests that are none"),
            pytest.param(PullEmbeddings(LEASE, ("0" * 64,) * 10_000), id="ten thousand digests"),
            pytest.param(Manifest(LEASE, ()), id="a producer's frame"),
            pytest.param(Renew("\x1b[2J\r\n"), id="control characters"),
        ],
    )
    async def test_that_ask_for_what_is_not_theirs_are_refused(self, fleet: Fleet, value: object) -> None:
        hello = Hello(fleet.token, "x", await link_class(fleet))
        port = fleet.children["prefill-0"].kv_port
        reply = await send_raw(port, frame(hello) + frame(value) + frame(Taken(LEASE)), until_end=True, deadline_s=1)
        welcome, refused, *more = said(reply)
        assert isinstance(welcome, Welcome)
        assert isinstance(refused, Refused)
        assert refused.message.isprintable()
        assert more == [Released(LEASE)], "the link lives on"

    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param(b"", id="nothing"),
            pytest.param((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), id="a length over the bound"),
            pytest.param(b"\xff\xff\xff\x7f", id="two gigabytes"),
            pytest.param(raw({"type": "pull", "lease": 5, "blocks": []}), id="a number for a lease"),
            pytest.param(raw({"type": "pull", "lease": LEASE, "blocks": [[0, "text", 1]]}), id="text for bytes"),
            pytest.param(raw({"type": "pull", "lease": LEASE, "blocks": [[0]]}), id="half a block"),
            pytest.param(raw({"type": "pull", "lease": LEASE, "blocks": [[2**64 - 1, b"", 1.5]]}), id="a fraction"),
            pytest.param(raw([1, 2, 3]), id="a list"),
            pytest.param(NOISE["a pickle in a frame"], id="a pickle"),
        ],
    )
    async def test_that_are_none_end_the_link(self, fleet: Fleet, sent: bytes) -> None:
        producer = fleet.children["prefill-0"]
        hello = frame(Hello(fleet.token, "x", await link_class(fleet)))
        with peak_of(producer) as grown:
            reply = await send_raw(producer.kv_port, hello + sent, until_end=True, deadline_s=1.5)
        assert isinstance(said(reply)[0], Welcome)
        assert len(said(reply)) == 1
        assert reply.closed is (sent != b"")
        assert grown[0] < 16 << 20

    async def test_a_second_greeting_is_refused(self, fleet: Fleet) -> None:
        hello = frame(Hello(fleet.token, "x", await link_class(fleet)))
        reply = await send_raw(fleet.children["prefill-0"].kv_port, hello + hello, until_end=True, deadline_s=1)
        welcome, refused = said(reply)
        assert isinstance(welcome, Welcome)
        assert isinstance(refused, Refused)
