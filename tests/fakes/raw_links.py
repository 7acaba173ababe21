"""Ends of a KV link that say whatever a test wants: a producer that lies, a consumer without manners."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from fakes.kv_nodes import LAYOUT, TOKEN, Node, ready, record, wanted
from fakes.tcp_proxy import abort
from triptych_contract.handover import (
    Hello,
    LinkClass,
    LinkFrame,
    Manifest,
    ManifestBlock,
    Pull,
    Ticket,
    WantedBlock,
    Welcome,
)
from triptych_contract.registry import MemoryRegistry
from triptych_engine.kv.layout import KVLayout


def truth_of(pull: Pull) -> Manifest:
    blocks = tuple(
        ManifestBlock(block.index, block.identity, block.index * 8, block.tokens, LAYOUT.valid_bytes(block.tokens))
        for block in pull.blocks
    )
    return Manifest(pull.lease, blocks)


def as_wanted(ticket: Ticket, layout: KVLayout) -> tuple[WantedBlock, ...]:
    return tuple(WantedBlock(b.index, b.identity, b.tokens) for b in wanted(ticket, layout).blocks)


class Liar:
    """A server that plays the producer `liar`, and a discovery that lists it."""

    def __init__(self, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._answer = answer

        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> tuple[int, MemoryRegistry]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                await abort(writer)

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        registry = MemoryRegistry()
        await registry.register(record("liar", port))
        return port, registry

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()


async def read(reader: asyncio.StreamReader) -> object:
    length = int.from_bytes(await reader.readexactly(4), "little")
    return msgspec.msgpack.decode(await reader.readexactly(length), type=LinkFrame)


def write(writer: asyncio.StreamWriter, frame: object) -> None:
    body = msgspec.msgpack.encode(frame)
    writer.write(len(body).to_bytes(4, "little") + body)


@contextlib.asynccontextmanager
async def greeted(p: Node, layout: KVLayout) -> AsyncIterator[socket.socket]:
    """A link to a producer that has said who it is, without any code of a consumer."""
    message = ready(layout)
    link_class = LinkClass("tcp", layout.describe(), message.kv_dtype, message.fingerprint)
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", p.port))
        assert isinstance(await ask(sock, Hello(TOKEN, "raw", link_class)), Welcome)
        yield sock


async def send(sock: socket.socket, frame: object) -> None:
    body = msgspec.msgpack.encode(frame)
    await asyncio.get_running_loop().sock_sendall(sock, len(body).to_bytes(4, "little") + body)


async def ask(sock: socket.socket, frame: object) -> object:
    """The answer to a frame; None if the peer closes the link instead."""
    data = b""
    async with asyncio.timeout(5):
        try:
            await send(sock, frame)
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
                part = await asyncio.get_running_loop().sock_recv(sock, 65536)
                if not part:
                    return None
                data += part
        except ConnectionError:
            return None
    return msgspec.msgpack.decode(data[4:], type=LinkFrame)
