"""Tiny programs with the manners of an engine and a router: flags, ready line, instance API, stdin, SIGTERM.

Run as `python fake_child.py engine|router FLAGS`. What they do wrong is said by the environment: FAKE_CRASH (exit code
at start), FAKE_HANDOVER (blocks received, tokens recomputed of each request, as `4,1`).
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from triptych_contract.codec import decode_json, encode_json
from triptych_contract.ids import random_id
from triptych_contract.instance import (
    BlockCounts,
    HandoverCounts,
    InstanceRecord,
    InstanceState,
    LoadSample,
    RoleRequest,
)
from triptych_contract.registry import LocalRegistry
from triptych_contract.roles import Assignment, Phase, Role, Stage, Verdict, judge


@dataclass
class Engine:
    """State of a fake instance."""

    id: str
    service: str
    token: str
    capable: frozenset[Stage]
    incarnation: str = field(default_factory=random_id)
    current: Assignment = field(default_factory=lambda: Assignment(Role.UNASSIGNED, 0))
    handover: HandoverCounts = field(default_factory=HandoverCounts)

    def state(self) -> InstanceState:
        load = LoadSample(blocks=BlockCounts(free=64, total=64), handover=self.handover)
        return InstanceState(
            id=self.id,
            incarnation=self.incarnation,
            service=self.service,
            capable=tuple(sorted(self.capable)),
            role=self.current.role,
            epoch=self.current.epoch,
            phase=Phase.SERVING,
            loading_percent=100,
            load=load,
        )

    def trusted(self, request: web.Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.token}"

    async def show(self, request: web.Request) -> web.Response:
        if not self.trusted(request):
            return web.Response(status=401)
        return web.Response(body=encode_json(self.state()), content_type="application/json")

    async def assign(self, request: web.Request) -> web.Response:
        if not self.trusted(request):
            return web.Response(status=401)
        wanted = decode_json(await request.read(), RoleRequest)
        assignment = Assignment(wanted.role, wanted.epoch)
        verdict = judge(self.current, assignment, self.capable)
        if verdict not in (Verdict.ACCEPT, Verdict.SAME):
            return web.Response(status=409)
        self.current = assignment
        return await self.show(request)

    async def hand_over(self, request: web.Request) -> web.Response:
        blocks, tokens = (int(word) for word in os.environ.get("FAKE_HANDOVER", "4,1").split(","))
        self.handover = msgspec.structs.replace(
            self.handover,
            blocks_received=self.handover.blocks_received + blocks,
            tokens_recomputed=self.handover.tokens_recomputed + tokens,
        )
        return web.Response()


@dataclass
class Router:
    """A fake front door."""

    registry: LocalRegistry
    token: str

    async def roles(self) -> dict[str, InstanceRecord]:
        found: dict[str, InstanceRecord] = {}
        headers = {"authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            for record in await self.registry.snapshot():
                url = f"http://{record.host}:{record.http_port}/instance"
                async with session.get(url, headers=headers) as answer:
                    found[decode_json(await answer.read(), InstanceState).role] = record
        return found

    async def ready(self, request: web.Request) -> web.Response:
        roles = await self.roles()
        return web.Response(status=200 if {"prefill", "decode"} <= set(roles) or "mixed" in roles else 503)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        roles = await self.roles()
        shown = {stage: roles[stage] for stage in ("encode", "prefill", "decode") if stage in roles}
        if "decode" in shown:
            record = shown["decode"]
            async with aiohttp.ClientSession() as session:
                await session.post(f"http://{record.host}:{record.http_port}/fake/handover")
        headers = {"x-triptych-served-by": ", ".join(f"{stage}={record.id}" for stage, record in shown.items())}
        text = "echo: " + body["messages"][-1]["content"]
        if body.get("stream"):
            return await self.stream(request, text, headers)
        return web.json_response({"choices": [{"message": {"content": text}}]}, headers=headers)

    async def stream(self, request: web.Request, text: str, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        for word in text.split(" "):
            event = {"choices": [{"delta": {"content": word + " "}}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


async def serve(kind: str, flags: argparse.Namespace, token: str) -> None:
    registry = LocalRegistry(Path(flags.discovery.removeprefix("local:")))
    app = web.Application()
    engine: Engine | None = None
    if kind == "engine":
        capable = frozenset(Stage(word) for word in flags.capable.split(","))
        engine = Engine(flags.instance_id, flags.service, token, capable)
        app.router.add_get("/instance", engine.show)
        app.router.add_post("/instance/role", engine.assign)
        app.router.add_post("/fake/handover", engine.hand_over)
    else:
        router = Router(registry, token)
        app.router.add_get("/readyz", router.ready)
        app.router.add_post("/v1/chat/completions", router.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", flags.port, reuse_address=True)
    await site.start()
    port = runner.addresses[0][1]
    if engine is not None:
        await registry.register(
            InstanceRecord(engine.id, engine.incarnation, engine.service, "127.0.0.1", port, 0, model="fake")
        )
    print(json.dumps({"event": "listening", "http_port": port, "kv_port": 0}), flush=True)
    print(f"{kind} listens", file=sys.stderr, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await runner.cleanup()


def leave_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--exit-with-stdin", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    for name in ("discovery", "token-file", "capable", "instance-id", "service"):
        parser.add_argument(f"--{name}")
    flags, _ = parser.parse_known_args()
    if os.environ.get("FAKE_CRASH") and flags.kind == "engine":
        print("the weights are broken", file=sys.stderr)
        sys.exit(int(os.environ["FAKE_CRASH"]))
    if flags.exit_with_stdin:
        threading.Thread(target=leave_with_stdin, daemon=True).start()
    asyncio.run(serve(flags.kind, flags, Path(flags.token_file).read_text().strip()))


if __name__ == "__main__":
    main()
