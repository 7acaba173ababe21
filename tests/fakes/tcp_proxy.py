"""A TCP proxy on loopback that harms what flows from the target to the client."""

import asyncio
from dataclasses import dataclass, field


@dataclass
class Harm:
    """What happens to the bytes from target to client, counted over one connection.

    Attributes:
        cut_after: Close both sides after so many bytes.
        flip_at: Flip the lowest bit of the byte at this position.
        drop: Leave out the bytes of this range.
        hold_after: Pass nothing more after so many bytes until `release` is set.
        release: Ends a hold.
        held: Set once a connection is held.
    """

    cut_after: int | None = None
    flip_at: int | None = None
    drop: range = range(0)
    hold_after: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)


class TcpProxy:
    """Use as an async context manager; `port` is where it listens, `passed` what the target sent."""

    def __init__(self, target_port: int, harm: Harm) -> None:
        self.harm = harm
        self.port = 0
        self.connections = 0
        self.passed = bytearray()
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "TcpProxy":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            await abort(writer)
            return
        self._writers.append(target_writer)
        up = asyncio.create_task(self._copy(reader, target_writer))
        down = asyncio.create_task(self._harmed(target_reader, writer))
        self._tasks |= {up, down}
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        await abort(writer)
        await abort(target_writer)

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def _harmed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        position = 0
        while data := await reader.read(65536):
            chunk = bytearray(data)
            self.passed += chunk
            first, position = position, position + len(data)
            if self.harm.flip_at is not None and first <= self.harm.flip_at < position:
                chunk[self.harm.flip_at - first] ^= 1
            kept = bytes(value for at, value in enumerate(chunk, first) if at not in self.harm.drop)
            limit = self.harm.cut_after if self.harm.cut_after is not None else self.harm.hold_after
            if limit is not None and position > limit:
                writer.write(kept[: max(0, limit - first)])
                await writer.drain()
                if self.harm.cut_after is not None:
                    return
                self.harm.held.set()
                await self.harm.release.wait()
                writer.write(kept[max(0, limit - first) :])
                continue
            writer.write(kept)
            await writer.drain()


async def abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection without a farewell; the loop closes the descriptor on its next pass."""
    writer.transport.abort()
    await asyncio.sleep(0)
