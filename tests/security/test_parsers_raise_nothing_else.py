"""Every reader of foreign bytes under noise and under mutated good input: a value, or the one error it names."""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.asking import image_part, png
from triptych_contract.codec import decode_binary, decode_json
from triptych_contract.errors import TriptychError, parse_error
from triptych_contract.handover import Hello, LinkClass, Pull, WantedBlock, parse_leg
from triptych_contract.instance import InstanceRecord, InstanceState, StateEvent
from triptych_contract.json_bounds import check_json_bounds
from triptych_contract.ledger import LedgerEntry, format_entry, parse_entry, split_event
from triptych_contract.registry import LocalRegistry
from triptych_engine.messages import Inbox
from triptych_engine.server.caller import read_caller
from triptych_engine.server.media import image_size, read_images
from triptych_engine.server.parse import parse_chat, parse_completion
from triptych_engine.transfer.link import Link, LinkBroken
from triptych_operator.spec.faults import BadSpec
from triptych_operator.spec.load import load_text
from triptych_router.admission.keys import KeyFileError, parse_keys
from triptych_router.api.parse import Kind, parse
from triptych_router.api.scan import members, splice
from triptych_router.api.sse import EventSplitter, error_of
from triptych_router.dispatch.ledger import Ledger

SOME, MANY = 200, 5000
CHAT = json.dumps(
    {
        "model": "sim",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "héllo\n"}, image_part(png())]}],
        "temperature": 0.5,
        "stop": ["a", "b"],
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"x": 1},
    }
).encode()
TEXT = b'{"model":"sim","prompt":[[1,2],[3]],"max_tokens":5,"n":2,"logprobs":1,"stop":"x","seed":-1,"\\u0065cho":true}'
RECORD = msgspec.json.encode(InstanceRecord("a", "0" * 32, "default", "127.0.0.1", 1, 2, model="m"))
TICKET = b'{"do_remote_prefill":true,"remote_engine_id":"a","remote_host":"h","remote_port":1,"lease":"%b"}' % (
    b"0" * 32
)
EVENT = format_entry(LedgerEntry(0, 3, (1, 2, 3), "c")) + b'data: {"error":{"message":"m","type":"t"}}\r\n\r\n'
SERVICE = (Path(__file__).parents[2] / "examples" / "laptop-sim.yaml").read_bytes()
FRAMES = tuple(
    len(body).to_bytes(4, "little") + body
    for body in map(
        msgspec.msgpack.encode,
        (Hello("t", "a", LinkClass("tcp", "l", "d", "f")), Pull("0" * 32, (WantedBlock(0, b"1" * 32, 8),))),
    )
)
JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x0b\x08\x00\x10\x00\x10"
WEBP = b"RIFF\0\0\0\0WEBPVP8X" + bytes(20)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Noise, or a good input with some pieces cut out, repeated, swapped or overwritten."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        piece = draw(st.binary(max_size=8) | st.sampled_from(PIECES) | st.just(bytes(data[at : at + length])))
        data[at : at + draw(st.sampled_from((0, length)))] = piece
    return bytes(data)


PIECES = (
    *(b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[" * 300, b"]", b",", b":", b"null", b"true", b"-1", b"1e999"),
    *(b"9" * 30, b"NaN", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\n\n", b"\r\n\r\n", b"data: ", b": v1 ", b" "),
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"- ", b"? ", b"\xef\xbb\xbf", b"\xdd\xff\xff\xff\xff"),
    *(b'"n":1,', b'"prompt":', b'"kv_transfer_params":{},', b"\xff\xff\xff\xff", b"\xc1", b"\xd4\x00\x00"),
)


def _scan(data: bytes) -> None:
    found = list(members(data))
    spliced = list(members(splice(data, "triptych", b"{}")))
    assert [member.name for member in spliced] == [*(member.name for member in found), "triptych"]


def _events(data: bytes) -> None:
    splitter = EventSplitter(max_event_bytes=4096)
    half = len(data) // 2
    events = [*splitter.feed(data[:half]), *splitter.feed(data[half:])]
    assert data.startswith(b"".join(events))
    assert sum(map(len, events)) + splitter.pending_bytes == len(data)
    ledger = Ledger()
    for event in events:
        line, _ = split_event(event)
        error_of(event)
        parse_error(event)
        if line is not None:
            ledger.record(line)
    ledger.delivered()
    assert parse_entry(data) is None or data.startswith(b": v1 ")


def _images(data: bytes) -> None:
    image_size(data)
    with contextlib.suppress(UnicodeDecodeError):
        read_images([data.decode()])


def _service(data: bytes) -> None:
    with contextlib.suppress(UnicodeDecodeError):
        load_text(data.decode())


def _headers(data: bytes) -> None:
    text = data.decode("latin-1")
    names = ("epoch", "deadline-ms", "seed", "tenant", "created", "ledger", "prefix")
    values = {f"x-triptych-{name}": text for name in names}
    read_caller(values, request_id="r", trusted=True, now_s=0, unix_s=0, timeout_s=1, seed=1)


def _messages(data: bytes) -> None:
    for kind in (InstanceState, StateEvent, InstanceRecord):
        with contextlib.suppress(TriptychError):
            decode_json(data, kind)  # type: ignore[arg-type]
    decode_binary(data, Inbox)  # type: ignore[arg-type]


def _leg(data: bytes) -> None:
    with contextlib.suppress(TriptychError):
        parse_leg(None, data, trusted=True)
    parse_leg(data, None, trusted=True)


def _keys(data: bytes) -> None:
    parse_keys(data.decode("utf-8", "replace"))


READERS: dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...], type[Exception]]] = {
    "chat bodies at the engine": (parse_chat, (CHAT,), TriptychError),
    "completion bodies at the engine": (parse_completion, (TEXT,), TriptychError),
    "chat bodies at the router": (lambda data: parse(Kind.CHAT, data), (CHAT,), TriptychError),
    "completion bodies at the router": (lambda data: parse(Kind.COMPLETION, data), (TEXT,), TriptychError),
    "members and splices": (_scan, (TEXT, CHAT[:80] + b'"}'), TriptychError),
    "bounds of JSON": (check_json_bounds, (TEXT, CHAT), TriptychError),
    "events and ledger lines": (_events, (EVENT, EVENT * 3), TriptychError),
    "headers of images": (_images, (png(), JPEG, WEBP, b"data:image/png;base64,AAAA"), TriptychError),
    "LLMService files": (_service, (SERVICE,), BadSpec),
    "headers between programs": (_headers, (b"5", b"-9223372036854775808", b"1_0"), TriptychError),
    "messages between programs": (_messages, (RECORD, b"\x81\xa4type\xa6submit"), TriptychError),
    "objects of legs": (_leg, (TICKET, b'{"encode":true}', b'{"embeddings":{}}'), TriptychError),
    "key files": (_keys, (b"alice:" + b"0" * 64 + b"\n# x\n",), KeyFileError),
}


def _read(name: str, data: bytes) -> None:
    reader, _, allowed = READERS[name]
    with contextlib.suppress(allowed):
        reader(data)


@pytest.mark.parametrize("name", READERS)
def test_foreign_bytes_give_a_value_or_the_error_of_the_reader(name: str) -> None:
    @settings(max_examples=SOME)
    @given(data=mutated(READERS[name][1]))
    def check(data: bytes) -> None:
        _read(name, data)

    check()


@pytest.mark.full
@pytest.mark.parametrize("name", READERS)
def test_foreign_bytes_for_long_give_a_value_or_the_error_of_the_reader(name: str) -> None:
    @settings(max_examples=MANY, derandomize=False)
    @given(data=mutated(READERS[name][1]))
    def check(data: bytes) -> None:
        _read(name, data)

    check()


@given(data=mutated(FRAMES))
def test_frames_of_the_kv_link_are_read_or_break_the_link(data: bytes) -> None:
    async def receive() -> None:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.closing(Link(_as_tcp(ours))) as link:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.suppress(LinkBroken):
                while True:
                    await link.receive_frame(timeout_s=1)

    asyncio.run(receive())


def _as_tcp(sock: socket.socket) -> socket.socket:
    """A socket pair takes no TCP option; the link asks for one."""

    class Plain(socket.socket):
        def setsockopt(self, *_: object) -> None:  # type: ignore[override]
            return

    return Plain(fileno=sock.detach())


@given(data=mutated((RECORD,)))
def test_records_of_discovery_are_read_or_left_out(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "records"
    registry = LocalRegistry(directory)
    path = directory / "a.instance.json"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for record in asyncio.run(registry.snapshot()):
            record.check()
            assert record.id == "a"
    finally:
        os.close(descriptor)
