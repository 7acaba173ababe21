"""Asking an OpenAI server in tests: one function for each way, each returning plain facts."""

import asyncio
import base64
import contextlib
import json
import socket
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import aiohttp

ASK_DEADLINE_S = 60.0


@dataclass
class Answer:
    """What came back: HTTP status, text of choice 0, how it ended, and errors inside or before the stream."""

    status: int
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    events: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    broken: bool = False

    @property
    def ends(self) -> int:
        """How many ends the request had: a finish reason, or an error; anything but one is a defect."""
        return int(self.finish_reason is not None) + int(self.error is not None)


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    *,
    path: str = "/v1/completions",
    headers: dict[str, str] | None = None,
    deadline_s: float = ASK_DEADLINE_S,
) -> Answer:
    """Ask and read the whole answer, streamed or not."""
    timeout = aiohttp.ClientTimeout(total=deadline_s)
    async with session.post(url + path, json=body, headers=headers, timeout=timeout) as response:
        answer = Answer(response.status, headers=dict(response.headers))
        if "text/event-stream" not in response.headers.get("content-type", ""):
            _read_whole(answer, await response.json())
            return answer
        try:
            async for line in response.content:
                _read_line(answer, line.strip())
        except aiohttp.ClientError:
            answer.broken = True
        return answer


def _read_whole(answer: Answer, body: dict[str, Any]) -> None:
    if "error" in body:
        answer.error = body["error"]
        return
    choice = body["choices"][0]
    answer.text = choice["message"]["content"] if "message" in choice else choice["text"]
    answer.finish_reason, answer.usage, answer.done = choice["finish_reason"], body.get("usage"), True


def _read_line(answer: Answer, line: bytes) -> None:
    if not line:
        return
    assert line.startswith(b"data: "), line
    if line == b"data: [DONE]":
        answer.done = True
        return
    assert not answer.done, "an event after [DONE]"
    body = json.loads(line[6:])
    answer.events += 1
    if "error" in body:
        answer.error = body["error"]
        return
    answer.usage = body.get("usage") or answer.usage
    for choice in body["choices"]:
        if choice["index"] == 0:
            part = choice["delta"].get("content") if "delta" in choice else choice["text"]
            answer.text += part or ""
            answer.finish_reason = choice["finish_reason"] or answer.finish_reason


async def vanish(
    port: int, body: dict[str, Any], *, path: str, sent: int | None, read: int, patience_s: float = 0.5
) -> None:
    """Send a request (or only its first `sent` bytes), read up to `read` bytes for a while, reset the connection."""
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    whole = head.encode() + f"content-length: {len(payload)}\r\n\r\n".encode() + payload
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(whole if sent is None else whole[:sent])
        await writer.drain()
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(patience_s):
                await reader.readexactly(read)
        handle = writer.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def png(width: int = 4, height: int = 4, shade: int = 0) -> bytes:
    """A small grey PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([shade]) * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image_part(data: bytes) -> dict[str, Any]:
    """A chat content part with a PNG as a data URI."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}
