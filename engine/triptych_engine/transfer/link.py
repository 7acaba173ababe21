"""One connection of the KV link: length-prefixed MessagePack frames, and raw bytes between them.

The socket is non-blocking and is read and written by the coroutine that owns the link, never by a callback:
once that coroutine has been cancelled, no byte is read into or out of the pool any more. Bytes move in
vectors of about `BATCH_BYTES`, so one call takes well under a millisecond of the event loop, and many small
blocks share one call.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

import msgspec

from triptych_contract.handover import (
    MAX_FRAME_BYTES,
    LinkFrame,
)

BATCH_BYTES = 1 << 20
"""Bytes of one call: the copy takes a fifth of a millisecond, and larger ones are no faster."""
BATCH_PARTS = 512
"""Parts of one call; Linux takes at most 1024."""
SOCKET_BUFFER_BYTES = 4 << 20
IO_TIMEOUT_S = 5.0
"""Longest wait for the peer to take or give the next byte."""
LENGTH_BYTES = 4

_DECODER: msgspec.msgpack.Decoder[LinkFrame] = msgspec.msgpack.Decoder(LinkFrame)
Part = bytes | bytearray | memoryview


class LinkBroken(Exception):
    """The peer has closed the link, or sent what is no frame."""


class Link:
    """A connected socket.

    One coroutine owns a link at a time. After any exception, cancellation included, only `close` may follow,
    because the stream may stand in the middle of a frame.

    Args:
        sock: Connected; the link makes it non-blocking and closes it.
        io_timeout_s: Longest wait for the peer's next byte.
    """

    def __init__(self, sock: socket.socket, *, io_timeout_s: float = IO_TIMEOUT_S) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._io_timeout_s = io_timeout_s

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._sock.close()

    def is_quiet(self) -> bool:
        """True if the peer has neither closed an idle link nor sent what nobody asked for."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    async def send(self, parts: Sequence[Part]) -> None:
        """Send all bytes of all parts.

        Raises:
            TimeoutError: The peer takes nothing.
            OSError: The connection is gone.
        """
        left = [memoryview(part).cast("B") for part in parts if len(part)]
        while left:
            try:
                done = self._sock.sendmsg(left)
            except (BlockingIOError, InterruptedError):
                await self._ready(_add_writer, _remove_writer, self._io_timeout_s)
                continue
            left = _after(left, done)

    async def receive_into(self, parts: Sequence[memoryview], *, timeout_s: float | None = None) -> None:
        """Fill all parts.

        Args:
            parts: Writable views.
            timeout_s: Longest wait for the next byte, where it is not the link's own.

        Raises:
            LinkBroken: The peer closed the link first.
            TimeoutError: The peer sends nothing.
            OSError: The connection is gone.
        """
        wait_s = self._io_timeout_s if timeout_s is None else timeout_s
        left = [part for part in parts if len(part)]
        while left:
            try:
                done = self._sock.recvmsg_into(left)[0]
            except (BlockingIOError, InterruptedError):
                await self._ready(_add_reader, _remove_reader, wait_s)
                continue
            if done == 0:
                raise LinkBroken("the peer closed the link")
            left = _after(left, done)

    async def send_frame(self, frame: LinkFrame) -> None:
        """Send one frame; raises as `send` does, and `ValueError` for a frame over the bound."""
        body = msgspec.msgpack.encode(frame)
        if len(body) > MAX_FRAME_BYTES:
            raise ValueError("a frame of the KV link is over its bound")
        await self.send([len(body).to_bytes(LENGTH_BYTES, "little"), body])

    async def receive_frame(self, *, limit_bytes: int = MAX_FRAME_BYTES, timeout_s: float | None = None) -> LinkFrame:
        """The next frame; raises as `receive_into` does, and `LinkBroken` for what is no frame."""
        head = bytearray(LENGTH_BYTES)
        await self.receive_into([memoryview(head)], timeout_s=timeout_s)
        length = int.from_bytes(head, "little")
        if not 0 < length <= limit_bytes:
            raise LinkBroken("a frame is over its bound")
        body = bytearray(length)
        await self.receive_into([memoryview(body)])
        try:
            return _DECODER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise LinkBroken("a frame cannot be read") from None

    async def _ready(self, add: "_Add", remove: "_Remove", timeout_s: float) -> None:
        """Wait until the socket can be read or written."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        descriptor = self._sock.fileno()
        add(loop, descriptor, ready)
        try:
            async with asyncio.timeout(timeout_s):
                await ready
        finally:
            remove(loop, descriptor)


_Add = Callable[[asyncio.AbstractEventLoop, int, asyncio.Future[None]], None]
_Remove = Callable[[asyncio.AbstractEventLoop, int], object]


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _add_reader(loop: asyncio.AbstractEventLoop, descriptor: int, ready: asyncio.Future[None]) -> None:
    loop.add_reader(descriptor, _wake, ready)


def _remove_reader(loop: asyncio.AbstractEventLoop, descriptor: int) -> object:
    return loop.remove_reader(descriptor)


def _add_writer(loop: asyncio.AbstractEventLoop, descriptor: int, ready: asyncio.Future[None]) -> None:
    loop.add_writer(descriptor, _wake, ready)


def _remove_writer(loop: asyncio.AbstractEventLoop, descriptor: int) -> object:
    return loop.remove_writer(descriptor)


def _after(parts: list[memoryview], done_bytes: int) -> list[memoryview]:
    """What is left of the parts after so many bytes."""
    for index, part in enumerate(parts):
        if done_bytes < len(part):
            return [part[done_bytes:], *parts[index + 1 :]]
        done_bytes -= len(part)
    return []


def widen_buffers(sock: socket.socket) -> None:
    """Ask for buffers that hold a block; must happen before connecting or listening to take full effect."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
