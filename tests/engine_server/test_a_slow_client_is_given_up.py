"""A client that asks for a long stream and reads none of it: a bounded buffer, then no further step, one end."""

import asyncio
import contextlib
import json
import socket

import pytest

from fakes.fleet import Fleet

pytestmark = [pytest.mark.process, pytest.mark.full]

BODY = {"model": "sim", "prompt": "x", "max_tokens": 8000, "n": 8, "stream": True, "ignore_eos": True}


async def test_a_stream_that_nobody_reads_costs_no_block_after_a_while(fleet: Fleet) -> None:
    child = await fleet.start_engine("e", "mixed", "--sim-profile", "0.0002,0,0,0,0")
    payload = json.dumps(BODY).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: e\r\ncontent-type: application/json\r\nconnection: close\r\n"
    loop = asyncio.get_running_loop()
    with contextlib.closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", child.http_port))
        await loop.sock_sendall(client, head + b"content-length: %d\r\n\r\n" % len(payload) + payload)

        async def begun() -> bool:
            state = await fleet.state("e")
            return state is not None and state.load.running == 8

        async def given_up() -> bool:
            state = await fleet.state("e")
            return state is not None and state.load.running == 0 and state.load.blocks.held == 0

        await fleet.until(begun, what="the stream runs", deadline_s=10)
        await fleet.until(given_up, what="its blocks are free", deadline_s=30)
        state = await fleet.state("e")
        assert state is not None
        assert state.load.step < BODY["max_tokens"]
        assert state.load.streams == 1, "the client has still its time to read what there is"

        said = b""
        async with asyncio.timeout(30):
            while piece := await loop.sock_recv(client, 2**20):
                said += piece
    assert said.count(b"request_timeout") == 1
    assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await fleet.settled("e")
