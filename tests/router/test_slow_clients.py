"""A client that takes nothing of its answer: it costs bounded memory and time, and nobody else anything."""

import asyncio
import json
import socket
from typing import Any

import pytest

from fakes.fake_engine import FakeEngine, until
from fakes.router_asserts import PROMPT
from triptych_contract.roles import Role

BODY: dict[str, Any] = {"model": "sim", "prompt": PROMPT, "max_tokens": 4}
BIG = "x" * 30_000_000
"""More than all buffers of two sockets hold."""


async def connect(port: int, body: dict[str, Any]) -> socket.socket:
    """A client with a small buffer that has asked and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(data)}"
    await loop.sock_sendall(client, head.encode() + b"\r\n\r\n" + data)
    return client


async def read_to_end(client: socket.socket) -> int:
    """Bytes until the connection ends."""
    loop, size_bytes = asyncio.get_running_loop(), 0
    try:
        while part := await loop.sock_recv(client, 1 << 20):
            size_bytes += len(part)
    except ConnectionError:
        pass
    return size_bytes


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_reads_nothing_is_cut_off_and_its_leg_cancelled(bench, stream) -> None:
    engine = FakeEngine("m", Role.MIXED, events=100_000 if stream else 4)
    engine.padding = BIG[:100_000] if stream else BIG
    async with bench(engine, slow_client_s=0.3) as b:
        client = await connect(b.router.port, {**BODY, "stream": stream})
        await until(lambda: b.router.services.gate.in_flight == 1, what="the request is in flight")
        await until(b.quiet, what="the router has given it up", deadline_s=5)
        await until(lambda: engine.running == 0, what="the leg is over", deadline_s=1)
        assert await read_to_end(client) < len(BIG)
        client.close()


async def test_a_slow_client_that_reads_in_time_gets_all_of_it_although_its_instance_is_gone(bench) -> None:
    engine = FakeEngine("m", Role.MIXED, padding=BIG)
    async with bench(engine, slow_client_s=5) as b:
        client = await connect(b.router.port, BODY)
        await until(lambda: b.router.services.gate.in_flight == 1, what="the request is in flight")
        await until(lambda: len(engine.legs) == 1 and not b.router.services.book.view(), what="the answer is here")
        await engine.stop()
        await until(lambda: not b.router.services.watch.view().instances, what="the instance has left the view")
        assert b.router.services.gate.in_flight == 1, "the client has not read it yet"
        assert await read_to_end(client) > len(BIG)
        client.close()


async def test_others_are_served_while_a_client_does_not_read(bench) -> None:
    engine = FakeEngine("m", Role.MIXED, padding=BIG)
    async with bench(engine, slow_client_s=2) as b:
        client = await connect(b.router.port, BODY)
        await until(lambda: len(engine.legs) == 1 and not b.router.services.book.view(), what="the answer is here")
        engine.padding = ""
        status, _, _ = await b.post(BODY)
        assert status == 200
        client.close()
