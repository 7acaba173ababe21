"""Real programs on loopback: engines and a router as child processes, for tests that need several of them.

A fleet ends with its test: children hold a pipe of this process on stdin and leave when it closes. `settled`
waits until every instance is quiet and returns what the last samples say, so that a test compares facts.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from triptych_contract.codec import decode_json
from triptych_contract.instance import InstanceState
from triptych_contract.roles import Phase

START_DEADLINE_S = 60.0
SETTLE_DEADLINE_S = 10.0


@dataclass
class Child:
    """One program: its process, where it listens, and the log file that gets its stderr."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    http_port: int = 0
    kv_port: int = 0
    incarnation: str = ""

    @property
    def url(self) -> str:
        """Base URL on loopback."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        """Of the program itself; an engine's core is its child."""
        return self.process.pid

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to this very process."""
        self.process.send_signal(sig)

    def core_pids(self) -> list[int]:
        """Children of this process (an engine's core)."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(word) for word in path.read_text().split()] if path.exists() else []


@dataclass
class Fleet:
    """Engines and a router that find each other in one directory."""

    directory: Path
    token: str = field(default_factory=lambda: secrets.token_hex(24))
    children: dict[str, Child] = field(default_factory=dict)
    session: aiohttp.ClientSession | None = None

    @property
    def token_file(self) -> Path:
        """The service token of the fleet."""
        return self.directory / "token"

    @property
    def discovery(self) -> str:
        """The `--discovery` argument of all programs."""
        return f"local:{self.directory / 'instances'}"

    @property
    def router(self) -> Child:
        """The router of this fleet."""
        return self.children["router"]

    @property
    def http(self) -> aiohttp.ClientSession:
        """A client session with room for many connections."""
        if self.session is None:
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self.session

    @property
    def auth(self) -> dict[str, str]:
        """The service token as a header."""
        return {"authorization": f"Bearer {self.token}"}

    async def start_engine(
        self, name: str, role: str, *flags: str, env: dict[str, str] | None = None, wait: bool = True
    ) -> Child:
        """Start an engine (simulated unless the flags name a model) and wait until it serves in its role."""
        kind = [] if "--model" in flags else ["--sim"]
        child = await self._start(
            name,
            [
                "triptych_engine.main",
                *kind,
                *("--instance-id", name, "--role", role, "--discovery", self.discovery),
                *("--lease-ttl-ms", "2000"),
                *flags,
            ],
            env,
        )
        if wait:
            await self.until(lambda: self._serves(child), what=f"{name} serves")
        return child

    async def start_router(self, *flags: str, port: int = 0) -> Child:
        """Start the router and wait until it has a view and a route."""
        child = await self._start(
            "router",
            ["triptych_router.main", "--discovery", self.discovery, "--port", str(port), "--expose-route", *flags],
            None,
        )
        await self.until(lambda: self._ready(child), what="the router is ready")
        return child

    async def _start(self, name: str, module: list[str], env: dict[str, str] | None) -> Child:
        self.token_file.write_text(self.token + "\n")
        log = self.directory / f"{name}.log"
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *module,
                "--token-file",
                str(self.token_file),
                "--exit-with-stdin",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            )
        child = Child(name, process, log)
        self.children[name] = child
        assert process.stdout is not None
        async with asyncio.timeout(START_DEADLINE_S):
            line = await process.stdout.readline()
        if not line:
            raise AssertionError(f"{name} did not start:\n{log.read_text()[-4000:]}")
        said = json.loads(line)
        child.http_port, child.kv_port = said["http_port"], said.get("kv_port") or 0
        child.incarnation = said.get("incarnation", "")
        return child

    async def _serves(self, child: Child) -> bool:
        if child.process.returncode is not None:
            raise AssertionError(f"{child.name} ended:\n{child.log.read_text()[-4000:]}")
        state = await self.state(child.name)
        return state is not None and state.phase is Phase.SERVING

    async def _ready(self, child: Child) -> bool:
        async with self.http.get(f"{child.url}/readyz") as answer:
            return answer.status == 200

    async def state(self, name: str) -> InstanceState | None:
        """What the instance says of itself; None if it does not answer."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.get(
                f"{self.children[name].url}/instance", headers=self.auth, timeout=aiohttp.ClientTimeout(total=5)
            ) as answer:
                if answer.status == 200:
                    return decode_json(await answer.read(), InstanceState)
        return None

    async def until(
        self, condition: Callable[[], Awaitable[bool]], *, what: str, deadline_s: float = START_DEADLINE_S
    ) -> float:
        """Poll a condition until it holds; returns the seconds it took, fails at the deadline."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                if await condition():
                    return time.monotonic() - began
            if time.monotonic() - began > deadline_s:
                raise AssertionError(f"not within {deadline_s} s: {what}\n{self.tails()}")
            await asyncio.sleep(0.02)

    async def quiet(self, name: str) -> bool:
        """True if the instance holds nothing for anybody: only free and cached blocks, no lease, no request."""
        state = await self.state(name)
        if state is None:
            return False
        load, blocks = state.load, state.load.blocks
        conserved = blocks.free + blocks.cached + blocks.held + blocks.in_transfer == blocks.total
        assert conserved, blocks
        busy = load.running + load.waiting + load.leases + load.streams + load.waiting_tokens + load.context_tokens
        return busy == 0 and blocks.held == 0 and blocks.in_transfer == 0

    async def settled(self, *names: str, deadline_s: float = SETTLE_DEADLINE_S) -> dict[str, InstanceState]:
        """Wait until the named instances (all live engines if none) are quiet, and tell their states.

        The core of each then finds no fault in its blocks, and its server waits for no answer of it.
        """
        engines = names or tuple(
            name for name, child in self.children.items() if name != "router" and child.process.returncode is None
        )
        for name in engines:
            await self.until(lambda name=name: self.at_rest(name), what=f"{name} is at rest", deadline_s=deadline_s)
        states = {name: await self.state(name) for name in engines}
        return {name: state for name, state in states.items() if state is not None}

    async def at_rest(self, name: str) -> bool:
        """True if it is quiet and its core says the same at this very moment; a faulty block fails the test.

        What an instance that was stopped told before may be out of date for as long as its sockets hold calls.
        """
        if not await self.quiet(name):
            return False
        report = await self.audit(name)
        assert report["faults"] == [], report
        return (report["server"]["open"], report["stats"]["leases"]) == (0, 0)

    async def audit(self, name: str) -> dict[str, Any]:
        """What `GET /instance/audit` of an instance answers."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with self.http.get(
            f"{self.children[name].url}/instance/audit", headers=self.auth, timeout=timeout
        ) as answer:
            assert answer.status == 200, await answer.text()
            report: dict[str, Any] = await answer.json()
            return report

    def tails(self) -> str:
        """The ends of all logs, for a failure's message."""
        return "\n".join(f"--- {c.name}\n{c.log.read_text()[-1500:]}" for c in self.children.values())

    async def close(self) -> None:
        """End every child: close its stdin, then insist."""
        if self.session is not None:
            await self.session.close()
        for child in self.children.values():
            if child.process.stdin is not None:
                child.process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGCONT)
        for child in self.children.values():
            try:
                async with asyncio.timeout(5):
                    await child.process.communicate()
            except TimeoutError:
                child.process.kill()
                await child.process.communicate()


@contextlib.asynccontextmanager
async def fleet_in(directory: Path) -> AsyncIterator[Fleet]:
    """A fleet that ends with the block."""
    fleet = Fleet(directory)
    try:
        yield fleet
    finally:
        await fleet.close()
