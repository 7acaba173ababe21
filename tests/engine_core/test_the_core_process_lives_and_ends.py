"""`python -m triptych_engine.core` as the server starts it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest

from fakes.core_harness import CoreHarness, make_submit
from triptych_contract.profile import StepProfile
from triptych_engine.channel import ServerChannel
from triptych_engine.core.board import BoardReader, create_board
from triptych_engine.core.config import CoreConfig, SimConfig, encode_config
from triptych_engine.kv.memory import KVMemory, create_shared
from triptych_engine.messages import (
    CoreFailed,
    CoreStats,
    Deltas,
    LeaseGranted,
    Mode,
    Outbox,
    Progress,
    Ready,
    ReleaseLease,
    Shutdown,
)

pytestmark = pytest.mark.process

PATIENCE_S = 20.0
QUICK = CoreConfig(kv_blocks=64, sim=SimConfig(eos_token_ids=(256,), time_scale=0.0))


@dataclass
class CoreProcess:
    """A core process and the server's end of everything that it shares."""

    process: asyncio.subprocess.Process
    channel: ServerChannel
    board: BoardReader
    pool_fd: int
    said: list[Outbox] = field(default_factory=list)

    async def until(self, kind: type, **wanted: object) -> Outbox:
        """The next message of a kind, with these attributes."""
        async with asyncio.timeout(PATIENCE_S):
            async for message in self.channel:
                self.said.append(message)
                if isinstance(message, kind) and all(getattr(message, name) == value for name, value in wanted.items()):
                    return message
        raise AssertionError(f"the core ended without a {kind.__name__}")

    async def ended(self) -> int:
        """The exit code."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@pytest.fixture
async def start() -> AsyncIterator[object]:
    started: list[CoreProcess] = []

    async def start_core(config: CoreConfig = QUICK) -> CoreProcess:
        mine, its = socket.socketpair()
        pool_fd, board_fd = create_shared("pool"), create_board()
        told = msgspec.structs.replace(config, socket_fd=its.fileno(), pool_fd=pool_fd, board_fd=board_fd)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "triptych_engine.core",
            encode_config(told),
            pass_fds=(its.fileno(), pool_fd, board_fd),
            stderr=asyncio.subprocess.DEVNULL,
        )
        its.close()
        core = CoreProcess(process, await ServerChannel.open(mine), BoardReader(board_fd), pool_fd)
        os.close(board_fd)
        started.append(core)
        return core

    yield start_core
    for core in started:
        await core.channel.close()
        if core.process.returncode is None:
            core.process.kill()
        await core.ended()
        core.board.close()
        os.close(core.pool_fd)


async def test_it_serves_and_returns_to_rest(start) -> None:  # type: ignore[no-untyped-def]
    core = await start()
    ready = await core.until(Ready)
    assert isinstance(core.said[0], Progress)
    assert ready.layout.num_blocks == 64
    await core.until(CoreStats, running=0)
    core.channel.send(make_submit([65] * 40))
    await core.until(CoreStats, running=0, step=16)
    tokens = [token for said in core.said if isinstance(said, Deltas) for one in said.items for token in one.token_ids]
    assert tokens == CoreHarness().generate(make_submit([65] * 40))
    assert core.board.sample().step == 16
    core.channel.send(Shutdown())
    assert await core.ended() == 0


async def test_its_blocks_stand_in_the_memory_that_the_server_maps(start) -> None:  # type: ignore[no-untyped-def]
    core, harness = await start(), CoreHarness()
    ready = await core.until(Ready)
    leg = make_submit([65] * 40, mode=Mode.PREFILL, lease="l")
    core.channel.send(leg)
    granted = await core.until(LeaseGranted)
    harness.tell(leg)
    harness.run()
    (expected,) = harness.take(LeaseGranted)
    assert granted.blocks == expected.blocks
    memory = KVMemory(os.dup(core.pool_fd), ready.layout.pool_bytes)
    size = ready.layout.block_bytes
    for block in granted.blocks:
        assert memory.view[block * size : (block + 1) * size] == harness.block(block)
    memory.close()
    core.channel.send(ReleaseLease(lease="l"))
    await core.until(CoreStats, leases=0)


async def test_it_ends_with_the_servers_end_of_the_channel(start) -> None:  # type: ignore[no-untyped-def]
    core = await start()
    await core.until(Ready)
    await core.channel.close()
    assert await core.ended() == 0


async def test_it_goes_on_after_ctrl_c_because_the_server_drains_first(start) -> None:  # type: ignore[no-untyped-def]
    core = await start()
    await core.until(Ready)
    core.process.send_signal(signal.SIGINT)
    core.channel.send(make_submit([65] * 40))
    await core.until(CoreStats, running=0)


async def test_the_board_shows_a_step_that_does_not_end(start) -> None:  # type: ignore[no-untyped-def]
    slow = CoreConfig(kv_blocks=64, sim=SimConfig(profile=StepProfile(base_s=600.0)))
    core = await start(slow)
    await core.until(Ready)
    core.channel.send(make_submit([65] * 40))
    async with asyncio.timeout(PATIENCE_S):
        while not core.board.sample().started_ns:  # noqa: ASYNC110 - a shared page rings no bell
            await asyncio.sleep(0.005)
    assert core.board.sample().predicted_ms > 600_000


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CoreConfig(kind="torch"), id="no model"),
        pytest.param(CoreConfig(kind="abacus"), id="unknown executor"),
        pytest.param(CoreConfig(sim=SimConfig(token_bytes=3)), id="impossible setting"),
    ],
)
async def test_a_core_that_cannot_start_says_so_safely_and_exits(start, config: CoreConfig) -> None:  # type: ignore[no-untyped-def]
    core = await start(config)
    failed = await core.until(CoreFailed)
    assert "/" not in failed.message
    assert await core.ended() == 1


@pytest.mark.parametrize("argument", [[], ["{}x"], ['{"kind": 3}']], ids=["none", "no json", "wrong type"])
def test_a_wrong_command_line_is_a_usage_error(argument: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "triptych_engine.core", *argument], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
