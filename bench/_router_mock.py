"""A mock instance for the router's benchmark: a fixed answer, beats, and a record in a directory."""

import asyncio
import sys
from pathlib import Path

import msgspec
from aiohttp import web

from triptych_contract.headers import LEDGER
from triptych_contract.instance import FullState, InstanceRecord, InstanceState, Load, LoadSample
from triptych_contract.registry import LocalRegistry
from triptych_contract.roles import Phase, Role, Stage

INCARNATION = "0" * 32
ANSWER = b'{"id":"c","object":"text_completion","created":1,"model":"mock","choices":[{"index":0,"text":"%s"}]}' % (
    b"x" * 380
)


EVENTS = 64
EVENT = (
    b'data: {"id":"c","object":"text_completion","created":1,"model":"mock","choices":[{"index":0,"text":"%b"}]}\n\n'
    % (b"y" * 96)
)


async def events(request: web.Request) -> web.StreamResponse:
    """Full state, then a beat every 250 ms."""
    response = web.StreamResponse()
    await response.prepare(request)
    state = InstanceState(
        "mock", INCARNATION, "default", tuple(Stage), Role.MIXED, 1, Phase.SERVING, "mock", link_class="mock"
    )
    await response.write(msgspec.json.encode(FullState(0, state)) + b"\n")
    for seq in range(1, 1 << 30):
        await asyncio.sleep(0.25)
        await response.write(msgspec.json.encode(Load(seq, LoadSample())) + b"\n")
    return response


async def stream(request: web.Request) -> web.StreamResponse:
    """All events at once, each in a chunk of its own, with ledger lines for who asks for them."""
    ledger = LEDGER in request.headers
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for position in range(EVENTS):
        line = b": v1 0 %d %d %d\n" % (position, 1000 + position, position) if ledger else b""
        await response.write(line + EVENT)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def answer(request: web.Request) -> web.StreamResponse:
    """480 bytes, or 64 events of 190 bytes at once, as soon as the prompt is read."""
    if b'"stream": true' in await request.read():
        return await stream(request)
    return web.Response(body=ANSWER, content_type="application/json")


async def main(directory: Path) -> None:
    """Serve until killed."""
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get("/instance/events", events)
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    await LocalRegistry(directory).register(InstanceRecord("mock", INCARNATION, "default", "127.0.0.1", port, 1))
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
