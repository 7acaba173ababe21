"""What hostile clients do: raw bytes on a socket, bad bodies; and what a process shows from outside."""

import asyncio
import contextlib
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from fakes.fleet import Child, Fleet

READ_DEADLINE_S = 20.0
LARGE_BYTES = 1 << 16
"""Larger bodies are sent piece by piece."""
KEYS = {"alice": "alice-key-marker-5d1c", "bob": "bob-key-marker-77aa"}
"""API keys by tenant; the words are looked for in logs."""
TALKATIVE = re.compile(rb"Traceback|aiohttp|msgspec|Errno|\.py\b|/usr/|/tmp/|0x[0-9a-f]{6,}|127\.0\.0\.1")
"""What would tell a stranger of the inside: libraries, paths, addresses of memory and of machines."""


class _Detail(msgspec.Struct, forbid_unknown_fields=True):
    message: str
    type: str
    param: str | None
    code: str | None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    error: _Detail


def key_of(tenant: str) -> dict[str, str]:
    """The headers with which a tenant shows its key."""
    return {"authorization": f"Bearer {KEYS[tenant]}"}


@dataclass(frozen=True)
class Target:
    """A program that listens, and what its callers must show."""

    name: str
    child: Child
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What a program answered on a raw connection, and whether it closed it."""

    status: int
    head: bytes
    body: bytes
    closed: bool


def one_error(status: int, body: bytes, wanted: tuple[int, ...], *, param: str | None = None) -> str | None:
    """Check that an answer is exactly one OpenAI error that says nothing of the inside; returns its code."""
    assert status in wanted, (status, body[:300])
    error = msgspec.json.decode(body, type=_Body).error
    assert error.message
    assert error.type
    assert len(body) < 4096, "an error never repeats what was sent"
    assert not TALKATIVE.search(body), body
    assert error.message.isprintable(), "an error cannot drive a terminal"
    if param is not None:
        assert error.param == param, body
    return error.code


async def post(
    http: aiohttp.ClientSession, target: Target, data: bytes, *, path: str = "/v1/completions", **headers: str
) -> tuple[int, bytes]:
    """Send bytes as a JSON body."""
    sent = {"content-type": "application/json", **target.headers, **headers}
    timeout = aiohttp.ClientTimeout(total=60)
    data = io.BytesIO(data) if len(data) > LARGE_BYTES else data
    async with http.post(target.child.url + path, data=data, headers=sent, timeout=timeout) as answer:
        return answer.status, await answer.read()


async def send_raw(
    port: int, *parts: bytes, pause_s: float = 0.0, until_end: bool = False, deadline_s: float = READ_DEADLINE_S
) -> Reply:
    """Send bytes as they are and read until the other side closes, or (unless told so) until one answer is whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    data, closed = bytearray(), False
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(deadline_s):
                closed = await _read_answer(reader, data, until_end=until_end)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0
    return Reply(status, head, body, closed)


async def _read_answer(reader: asyncio.StreamReader, data: bytearray, *, until_end: bool) -> bool:
    """Collect bytes until the end, or until one answer that keeps the connection open is whole; True at the end."""
    while True:
        try:
            part = await reader.read(65536)
        except ConnectionError:
            return True
        if not part:
            return True
        data += part
        if not until_end and _is_whole(data):
            return False


def _is_whole(data: bytearray) -> bool:
    head, mark, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: *([0-9]+)", head)
    stays = head.startswith(b"HTTP/1.1") and b"connection: close" not in head.lower()
    return stays and bool(mark) and found is not None and len(body) >= int(found[1])


def rss_bytes(child: Child) -> int:
    """Memory that a program and its children hold now."""
    return sum(_memory(pid, "VmRSS") for pid in (child.pid, *child.core_pids()))


def _memory(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def peak_of(child: Child) -> Iterator[list[int]]:
    """Appends how many bytes more than at its start the program held at most while the block ran."""
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")
    before = _memory(child.pid, "VmRSS")
    grown: list[int] = []
    yield grown
    grown.append(_memory(child.pid, "VmHWM") - before)


def listening(pids: tuple[int, ...]) -> set[tuple[str, int]]:
    """Addresses (hex, as the kernel writes them) and ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = re.fullmatch(r"socket:\[([0-9]+)\]", os.readlink(link))
                inodes |= {found[1]} if found else set()
    tables = [Path(f"/proc/{pids[0]}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    addresses = [row[1].split(":") for row in rows if len(row) > 9 and row[3] == "0A" and row[9] in inodes]
    return {(address, int(port, 16)) for address, port in addresses}


class Bystander:
    """A well-behaved client that asks for the same stream again and again while others misbehave."""

    def __init__(self, fleet: Fleet, headers: dict[str, str]) -> None:
        self._fleet = fleet
        self._headers = headers
        self._task: asyncio.Task[None] | None = None
        self.texts: list[str] = []
        self.longest_gap_s = 0.0

    async def _once(self) -> str:
        body = {"model": "sim", "prompt": "a b c " * 20, "max_tokens": 40, "seed": 11, "stream": True}
        body["ignore_eos"] = True
        text, last_s = "", time.monotonic()
        url = self._fleet.router.url + "/v1/completions"
        async with self._fleet.http.post(url, json=body, headers=self._headers) as answer:
            assert answer.status == 200, await answer.read()
            async for line in answer.content:
                now_s = time.monotonic()
                self.longest_gap_s, last_s = max(self.longest_gap_s, now_s - last_s), now_s
                if line.startswith(b"data: {"):
                    event = msgspec.json.decode(line[6:])
                    assert "error" not in event, event
                    text += "".join(choice["text"] for choice in event["choices"])
        return text

    async def _loop(self) -> None:
        while True:
            self.texts.append(await self._once())

    async def __aenter__(self) -> "Bystander":
        self.texts.append(await self._once())
        self.longest_gap_s = 0.0
        self._task = asyncio.create_task(self._loop())
        return self

    async def _flows(self, wanted: int) -> bool:
        assert self._task is not None
        return len(self.texts) >= wanted or self._task.done()

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        seen = len(self.texts)
        flows = self._fleet.until(lambda: self._flows(seen + 2), what="the stream flows", deadline_s=10)
        await asyncio.gather(flows, return_exceptions=True)
        self._task.cancel()
        result = (await asyncio.gather(self._task, return_exceptions=True))[0]
        assert isinstance(result, asyncio.CancelledError), result
        assert len(self.texts) >= seen + 2, "the well-behaved stream does not flow any more"
        assert set(self.texts) == {self.texts[0]}, "the well-behaved stream has another text"
