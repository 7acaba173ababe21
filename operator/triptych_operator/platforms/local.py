"""Children of this process: engines and a router, each on a pipe that ties its life to ours.

A child gets a pipe on stdin that only this process holds open, and leaves when it closes; that works however this
process dies. Its first line on stdout says where it listens; all else it says goes to its log.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from triptych_contract.clock import Clock
from triptych_contract.roles import Assignment
from triptych_operator.backoff import crashes_after
from triptych_operator.platforms.commands import Commands
from triptych_operator.platforms.last_words import LastWords
from triptych_operator.platforms.log_file import LogFile
from triptych_operator.snapshot import Component, ObservedChild

LINE_BYTES = 1 << 20
STOP_GRACE_S = 5.0
"""A child that drains gets its drain time and this much more before it is killed."""
REAP_S = 5.0


class _Listening(msgspec.Struct):
    event: str
    http_port: int = 0


@dataclass
class _Child:
    name: str
    component: Component
    log: LogFile
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None
    http_port: int = 0
    exit_code: int | None = None
    starts: int = 0
    crashes: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0
    stopping: bool = False
    assigned: Assignment | None = None
    silent_since_s: float | None = None
    words: LastWords = field(default_factory=LastWords)
    last_words: str = ""
    because: str = ""
    given_up: str = ""

    @property
    def alive(self) -> bool:
        return self.task is not None and not self.task.done()

    def say(self, line: bytes) -> None:
        """Take one line of what it says."""
        self.log.write(line)
        self.words.hear(line)

    def observed(self) -> ObservedChild:
        return ObservedChild(
            name=self.name,
            component=self.component,
            alive=self.alive,
            pid=self.process.pid if self.process else None,
            exit_code=self.exit_code,
            starts=self.starts,
            crashes=self.crashes,
            started_s=self.started_s,
            ended_s=self.ended_s,
            listened=self.http_port > 0,
            stopping=self.stopping,
            assigned=self.assigned,
            silent_since_s=self.silent_since_s,
            last_words=self.last_words,
            given_up=self.given_up,
        )


class LocalPlatform:
    """Starts, watches and ends the children of one service.

    Args:
        commands: argv of each child.
        logs: Directory of the log files.
        port: The router's port; 0 takes a free one at the first start and keeps it.
        clock: For the times of starts and ends.
        wake: Called whenever a child begins to listen or ends.
    """

    def __init__(self, *, commands: Commands, logs: Path, port: int, clock: Clock, wake: Callable[[], None]) -> None:
        self._commands = commands
        self._logs = logs
        self._port = port
        self._clock = clock
        self._wake = wake
        self._children: dict[str, _Child] = {}
        self._stops: set[asyncio.Task[None]] = set()

    @property
    def router_port(self) -> int:
        """Where the router listens; 0 before it ever did."""
        return self._port

    def observe(self) -> tuple[ObservedChild, ...]:
        """Every child that was ever started, by name."""
        return tuple(self._children[name].observed() for name in sorted(self._children))

    def http_port(self, name: str) -> int:
        """Where a child listens; 0 while it does not."""
        child = self._children.get(name)
        return child.http_port if child and child.alive else 0

    async def start(self, name: str, component: Component) -> None:
        """Start a child unless it lives; a program that cannot be started counts as one that ended at once."""
        child = self._children.get(name)
        if child is not None and child.alive:
            return
        if child is None:
            child = _Child(name, component, LogFile(self._logs / f"{name}.log"))
            self._children[name] = child
        child.starts += 1
        child.started_s = self._clock.now_s()
        child.stopping, child.silent_since_s, child.http_port = False, None, 0
        child.words, child.because = LastWords(), ""
        argv = (
            self._commands.router(self._port)
            if component == Component.ROUTER
            else self._commands.engine(name, component)
        )
        try:
            child.process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **self._commands.environment(component)},
                limit=LINE_BYTES,
                start_new_session=True,  # a Ctrl-C of the terminal is for the operator, which ends its children itself
            )
        except OSError as error:
            child.say(f"cannot be started: {error.strerror}".encode())
            self._ended(child, 127)
            return
        child.task = asyncio.create_task(self._watch(child, child.process), name=f"child {name}")

    async def stop(self, name: str, *, at_once: bool, because: str = "") -> None:
        """Tell a child to end, and see to it that it does; returns before it has.

        Args:
            name: Of the child.
            at_once: Kill it.
            because: Told in place of its last words if it is killed.
        """
        child = self._children.get(name)
        if child is None or child.process is None or not child.alive or (child.stopping and not at_once):
            return
        child.stopping, child.because = True, because if at_once else ""
        _signal(child.process, signal.SIGKILL if at_once else signal.SIGTERM)
        if not at_once:
            task = asyncio.create_task(self._insist(child, child.process), name=f"stop {name}")
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    def assigned(self, name: str, assignment: Assignment) -> None:
        """Remember the role that an instance took."""
        self._children[name].assigned = assignment

    def heard(self, name: str, *, answered: bool) -> None:
        """Remember whether a listening instance answered."""
        child = self._children.get(name)
        if child is None:
            return
        if answered:
            child.silent_since_s = None
        elif child.silent_since_s is None:
            child.silent_since_s = self._clock.now_s()

    async def close(self, *, at_once: bool = False) -> None:
        """End all children and wait for it: the router first, so that no new work arrives, then the instances."""
        for routers in (True, False):
            group = [c for c in self._children.values() if (c.component == Component.ROUTER) == routers and c.alive]
            for child in group:
                await self.stop(child.name, at_once=at_once)
            waiting = [child.task for child in group if child.task]
            if waiting:
                await asyncio.wait(waiting, timeout=self._patience_s() + REAP_S)
        for task in list(self._stops):
            task.cancel()
        await asyncio.gather(*self._stops, return_exceptions=True)
        for child in self._children.values():
            child.log.close()

    def _patience_s(self) -> float:
        return self._commands.service.spec.drain_seconds + STOP_GRACE_S

    async def _insist(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Kill a child that did not end in its drain time."""
        assert child.task is not None  # noqa: S101 - it lives, so it has one
        done, _ = await asyncio.wait([child.task], timeout=self._patience_s())
        if not done:
            _signal(process, signal.SIGKILL)

    async def _watch(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Copy what the child says to its log until it ends."""
        assert process.stdout is not None  # noqa: S101 - both are pipes
        assert process.stderr is not None  # noqa: S101
        try:
            copies = (self._listen(child, process.stdout), _copy(process.stderr, child))
            pumps = [asyncio.create_task(copy) for copy in copies]
            code = await process.wait()
            # A grandchild may hold the pipes open; what is left in them after the end is read with a deadline.
            await asyncio.wait(pumps, timeout=1.0)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            if process.stdin is not None:
                process.stdin.close()
        self._ended(child, code)

    async def _listen(self, child: _Child, stream: asyncio.StreamReader) -> None:
        while line := await _line(stream):
            with contextlib.suppress(msgspec.MsgspecError):
                ready = msgspec.json.decode(line, type=_Listening)
                if ready.event == "listening" and ready.http_port:
                    self._listening(child, ready.http_port)
            child.say(line)

    def _listening(self, child: _Child, port: int) -> None:
        child.http_port = port
        if child.component == Component.ROUTER:
            self._port = port
        self._wake()

    def _ended(self, child: _Child, code: int) -> None:
        child.exit_code = code
        child.ended_s = self._clock.now_s()
        child.http_port = 0
        child.last_words, child.given_up = child.words.text, child.because
        told = child.stopping and code in (0, -signal.SIGTERM)
        child.crashes = 0 if told else crashes_after(child.crashes, ran_s=child.ended_s - child.started_s)
        asyncio.get_running_loop().call_soon(self._wake)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """One line, or a part of one that is longer than any line of ours; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(max(1, error.consumed))


async def _copy(stream: asyncio.StreamReader, child: _Child) -> None:
    while line := await _line(stream):
        child.say(line)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
