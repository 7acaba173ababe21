"""Frames between the two processes of one engine: 4 bytes of length, little-endian, then MessagePack.

Both ends share one socket pair. The core's end is synchronous (its loop owns the thread), the server's end is
asyncio. The types are known on both sides, so nothing else than `messages.Inbox` and `messages.Outbox` can be
decoded. End of file means that the peer process is gone; there is no reconnection.
"""

import asyncio
import select
import socket
import struct
from collections.abc import Iterator
from typing import Generic, Self, TypeVar

import msgspec

from triptych_contract.errors import Overloaded
from triptych_engine.messages import MAX_MESSAGE_BYTES, Encode, Inbox, Outbox, Submit

T = TypeVar("T")

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 * 1024
_READS_A_POLL = 16
"""Reads of one `poll`, so that a flood of messages cannot keep the core from its next step."""

SEND_DEADLINE_S = 60.0
"""A server that reads nothing for so long is broken; the core then ends and the service restarts both."""

WRITE_BUFFER_BYTES = 64 * 1024 * 1024
"""Unread bytes above which the server refuses new work; messages that end work pass up to twice as many."""


class ChannelClosed(ConnectionError):
    """The peer process is gone."""


class ChannelBroken(ConnectionError):
    """The peer sent what is no message, or does not read any more."""


class FrameReader(Generic[T]):
    """Cuts a byte stream into messages of one known union of types.

    Args:
        decoder: Of that union.
        limit_bytes: Bound of one message.
    """

    def __init__(self, decoder: "msgspec.msgpack.Decoder[T]", *, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder = decoder
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> Iterator[T]:
        """Add bytes and take out every complete message.

        Raises:
            ChannelBroken: A frame over the limit, or not of the known types.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (size_bytes,) = _LENGTH.unpack_from(self._buffer, start)
                check_size(size_bytes, self._limit_bytes)
                end = start + _LENGTH.size + size_bytes
                if len(self._buffer) < end:
                    break
                yield decode(self._decoder, bytes(memoryview(self._buffer)[start + _LENGTH.size : end]))
                start = end
        finally:
            del self._buffer[:start]


def encode_frame(message: Inbox | Outbox, *, limit_bytes: int = MAX_MESSAGE_BYTES) -> bytearray:
    """One message with its length in front.

    Raises:
        ChannelBroken: The message is over the limit.
    """
    frame = bytearray(_LENGTH.size)
    _ENCODER.encode_into(message, frame, _LENGTH.size)
    size_bytes = len(frame) - _LENGTH.size
    check_size(size_bytes, limit_bytes)
    _LENGTH.pack_into(frame, 0, size_bytes)
    return frame


def decode(decoder: "msgspec.msgpack.Decoder[T]", data: bytes) -> T:
    """One message; raises `ChannelBroken` for anything else."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ChannelBroken(f"the peer process sent no known message: {error}") from None


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Raise `ChannelBroken` for a message over the limit."""
    if size_bytes > limit_bytes:
        raise ChannelBroken(f"a message of {size_bytes} bytes is over the limit of {limit_bytes} bytes")


class CoreChannel:
    """The core's end: drained between two steps, and blocking only while the core is idle.

    Args:
        sock: One end of a stream socket pair; owned from now on.
        send_deadline_s: How long `send` waits for the server to read.
    """

    def __init__(self, sock: socket.socket, *, send_deadline_s: float = SEND_DEADLINE_S) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._send_deadline_s = send_deadline_s
        self._reader: FrameReader[Inbox] = FrameReader(_INBOX)
        self._closed = False
        self._readable = _poller(sock, select.POLLIN)
        self._writable = _poller(sock, select.POLLOUT)

    def poll(self, timeout_s: float | None) -> list[Inbox]:
        """Messages that have arrived; waits for the first bytes at most `timeout_s` (None = for ever).

        Raises:
            ChannelClosed: The server is gone and everything it sent has been returned.
            ChannelBroken: What it sent is no message.
        """
        if self._closed:
            raise ChannelClosed("the server process is gone")
        if not self._readable.poll(None if timeout_s is None else max(0.0, timeout_s * 1000)):
            return []
        messages: list[Inbox] = []
        for _ in range(_READS_A_POLL):
            data = self._receive()
            if data is None:
                break
            messages.extend(self._reader.feed(data))
        if self._closed and not messages:
            raise ChannelClosed("the server process is gone")
        return messages

    def _receive(self) -> bytes | None:
        """The next bytes; None if there are none yet, or none any more."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        self._closed = not data
        return data or None

    def send(self, message: Outbox) -> None:
        """Hand one message to the server, waiting while its side of the socket is full.

        Raises:
            ChannelClosed: The server is gone.
            ChannelBroken: It has not read for the whole deadline.
        """
        rest = memoryview(encode_frame(message))
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                if not self._writable.poll(self._send_deadline_s * 1000):
                    raise ChannelBroken("the server process does not read") from None
            except ConnectionError:
                raise ChannelClosed("the server process is gone") from None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class ServerChannel:
    """The server's end: `async for message in channel` until the core is gone.

    Made by `ServerChannel.open`. One task reads; any task may `send`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Take over one end of a stream socket pair."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=_READ_BYTES))

    @property
    def buffered_bytes(self) -> int:
        """Bytes that the core has not read yet, beyond what the socket holds."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, message: Inbox) -> None:
        """Queue one message for the core; never waits.

        Raises:
            Overloaded: New work, and the core is far behind with reading.
            ChannelClosed: The core is gone.
            ChannelBroken: The core has stopped reading altogether.
        """
        if self._writer.is_closing():
            raise ChannelClosed("the core process is gone")
        if self.buffered_bytes > WRITE_BUFFER_BYTES and isinstance(message, Submit | Encode):
            raise Overloaded("The engine is busy; try again.", retry_after_ms=1000)
        if self.buffered_bytes > 2 * WRITE_BUFFER_BYTES:
            raise ChannelBroken("the core process does not read")
        self._writer.write(encode_frame(message))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outbox:
        """The next message; the iteration ends with the core process.

        Raises:
            ChannelBroken: What the core sent is no message.
        """
        try:
            (size_bytes,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            check_size(size_bytes, MAX_MESSAGE_BYTES)
            data = await self._reader.readexactly(size_bytes)
        except ChannelBroken:
            raise
        except (asyncio.IncompleteReadError, ConnectionError):
            raise StopAsyncIteration from None
        return decode(_OUTBOX, data)

    async def close(self) -> None:
        """Close the socket; what is still buffered is dropped, because the core may not be reading."""
        self._writer.transport.abort()
        # The transport reports its loss in a later turn of the event loop.
        await asyncio.sleep(0)


_ENCODER = msgspec.msgpack.Encoder()
_INBOX: "msgspec.msgpack.Decoder[Inbox]" = msgspec.msgpack.Decoder(Inbox)
_OUTBOX: "msgspec.msgpack.Decoder[Outbox]" = msgspec.msgpack.Decoder(Outbox)


def _poller(sock: socket.socket, event: int) -> select.poll:
    poller = select.poll()
    poller.register(sock, event)
    return poller
