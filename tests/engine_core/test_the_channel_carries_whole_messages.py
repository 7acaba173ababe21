"""Frames over a socket pair: cut anywhere, ended anywhere, and never more than their bound."""

import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest

from fakes.core_harness import make_submit
from triptych_contract.errors import Overloaded
from triptych_contract.instance import BlockCounts
from triptych_engine.channel import (
    WRITE_BUFFER_BYTES,
    ChannelBroken,
    ChannelClosed,
    CoreChannel,
    FrameReader,
    ServerChannel,
    encode_frame,
)
from triptych_engine.messages import (
    MAX_MESSAGE_BYTES,
    Cancel,
    CoreStats,
    Delta,
    Deltas,
    Encode,
    Inbox,
    Progress,
    Shutdown,
)

PATIENCE_S = 5.0
MESSAGES: list[Inbox] = [Cancel(id="a"), make_submit([1, 2, 3]), Cancel(id="b", choice=1), Shutdown()]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def inbox_reader(limit_bytes: int = MAX_MESSAGE_BYTES) -> FrameReader[Inbox]:
    return FrameReader(msgspec.msgpack.Decoder(Inbox), limit_bytes=limit_bytes)


class TestFrames:
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
    def test_messages_arrive_however_the_bytes_are_cut(self, size: int) -> None:
        stream = b"".join(encode_frame(message) for message in MESSAGES)
        reader = inbox_reader()
        got = [message for at in range(0, len(stream), size) for message in reader.feed(stream[at : at + size])]
        assert got == MESSAGES
        assert reader.pending_bytes == 0

    def test_a_frame_over_the_limit_is_refused_by_its_length_alone(self) -> None:
        with pytest.raises(ChannelBroken, match="limit"):
            list(inbox_reader(1000).feed(struct.pack("<I", 1001)))

    def test_a_message_over_the_limit_is_not_sent(self) -> None:
        with pytest.raises(ChannelBroken, match="limit"):
            encode_frame(Progress(percent=1, text="x" * 100), limit_bytes=50)

    @pytest.mark.parametrize(
        "payload",
        [b"\xc1", msgspec.msgpack.encode({"type": "nothing"}), msgspec.msgpack.encode([1]), b""],
        ids=["not msgpack", "unknown tag", "a list", "empty"],
    )
    def test_what_is_no_message_breaks_the_channel(self, payload: bytes) -> None:
        with pytest.raises(ChannelBroken):
            list(inbox_reader().feed(struct.pack("<I", len(payload)) + payload))


class TestTheCoresEnd:
    def test_it_waits_no_longer_than_told(self, pair: tuple[socket.socket, socket.socket]) -> None:
        assert CoreChannel(pair[0]).poll(0.01) == []

    def test_it_drains_what_has_arrived(self, pair: tuple[socket.socket, socket.socket]) -> None:
        channel = CoreChannel(pair[0])
        for message in MESSAGES:
            pair[1].sendall(encode_frame(message))
        assert channel.poll(PATIENCE_S) == MESSAGES

    def test_a_partial_message_waits_for_its_rest(self, pair: tuple[socket.socket, socket.socket]) -> None:
        channel = CoreChannel(pair[0])
        frame = encode_frame(MESSAGES[1])
        pair[1].sendall(frame[:9])
        assert channel.poll(PATIENCE_S) == []
        pair[1].sendall(frame[9:])
        assert channel.poll(PATIENCE_S) == [MESSAGES[1]]

    def test_the_end_comes_after_the_last_message(self, pair: tuple[socket.socket, socket.socket]) -> None:
        channel = CoreChannel(pair[0])
        pair[1].sendall(encode_frame(MESSAGES[0]))
        pair[1].close()
        assert channel.poll(PATIENCE_S) == [MESSAGES[0]]
        with pytest.raises(ChannelClosed):
            channel.poll(PATIENCE_S)

    def test_sending_to_a_server_that_is_gone(self, pair: tuple[socket.socket, socket.socket]) -> None:
        channel = CoreChannel(pair[0])
        pair[1].close()
        with pytest.raises(ChannelClosed):
            channel.send(Progress(percent=1, text=""))

    def test_sending_to_a_server_that_does_not_read(self, pair: tuple[socket.socket, socket.socket]) -> None:
        channel = CoreChannel(pair[0], send_deadline_s=0.01)
        with pytest.raises(ChannelBroken, match="read"):
            channel.send(Progress(percent=1, text="x" * 10_000_000))


class TestTheServersEnd:
    async def test_both_ends_understand_each_other(self, pair: tuple[socket.socket, socket.socket]) -> None:
        core, server = CoreChannel(pair[0]), await ServerChannel.open(pair[1])
        server.send(MESSAGES[1])
        assert core.poll(PATIENCE_S) == [MESSAGES[1]]
        told = Deltas(at_s=1.0, items=(Delta(id="a", choice=0, first_position=0, token_ids=(1,)),))
        core.send(told)
        assert await anext(server) == told
        await server.close()

    async def test_the_iteration_ends_with_the_core(self, pair: tuple[socket.socket, socket.socket]) -> None:
        core, server = CoreChannel(pair[0]), await ServerChannel.open(pair[1])
        core.send(Progress(percent=50, text=""))
        core.close()
        assert [message async for message in server] == [Progress(percent=50, text="")]
        await server.close()
        with pytest.raises(ChannelClosed):
            server.send(Shutdown())

    async def test_a_core_that_dies_within_a_message_is_gone(self, pair: tuple[socket.socket, socket.socket]) -> None:
        server = await ServerChannel.open(pair[1])
        pair[0].sendall(encode_frame(Progress(percent=50, text="half"))[:-2])
        pair[0].close()
        assert [message async for message in server] == []
        await server.close()

    async def test_what_is_no_message_breaks_the_channel(self, pair: tuple[socket.socket, socket.socket]) -> None:
        server = await ServerChannel.open(pair[1])
        pair[0].sendall(struct.pack("<I", 1) + b"\xc1")
        with pytest.raises(ChannelBroken):
            await anext(server)
        await server.close()

    async def test_a_core_that_does_not_read_gets_no_more_work(self, pair: tuple[socket.socket, socket.socket]) -> None:
        server = await ServerChannel.open(pair[1])
        load = Encode(id="e", digest=b"", data=bytes(WRITE_BUFFER_BYTES + 10_000_000), count=1)
        server.send(load)
        with pytest.raises(Overloaded):
            server.send(load)
        server.send(Cancel(id="a"))
        assert server.buffered_bytes < 2 * WRITE_BUFFER_BYTES
        await server.close()


def test_stats_pass_unchanged() -> None:
    counts = dict.fromkeys(CoreStats.__struct_fields__, 1) | {"blocks": BlockCounts(free=1, total=1)}
    stats = CoreStats(**counts)  # type: ignore[arg-type]
    frame = encode_frame(stats)
    assert msgspec.msgpack.decode(frame[4:], type=CoreStats) == stats
