"""The core process as the server sees it: started with inherited descriptors, watched, ended with the server."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping

import msgspec

from triptych_engine.channel import ServerChannel
from triptych_engine.core.board import BoardReader, BoardSample, create_board
from triptych_engine.core.config import CoreConfig, SimConfig, encode_config
from triptych_engine.kv.layout import KVLayout
from triptych_engine.kv.memory import KVMemory, create_shared
from triptych_engine.messages import Inbox, Outbox, Shutdown
from triptych_engine.server.builtin import EOS_TOKEN_IDS, VOCAB_SIZE
from triptych_engine.settings import Settings

EXIT_DEADLINE_S = 3.0


def core_config(settings: Settings) -> CoreConfig:
    """What the core is told; the descriptors are added at its start."""
    return CoreConfig(
        kind="sim" if settings.model is None else "torch",
        model_dir=None if settings.model is None else str(settings.model),
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        kernels=settings.kernels,
        kv_blocks=settings.kv_blocks,
        kv_memory_bytes=settings.kv_memory_bytes,
        max_context=settings.max_context,
        max_batch_tokens=settings.max_batch_tokens,
        max_sequences=settings.max_sequences,
        max_waiting=settings.max_waiting,
        lease_share_percent=settings.lease_share_percent,
        log_level=settings.log_level,
        enable_failpoints=settings.enable_failpoints,
        sim=SimConfig(
            vocab_size=VOCAB_SIZE,
            eos_token_ids=EOS_TOKEN_IDS,
            profile=settings.sim_profile,
            jitter_percent=settings.sim_jitter_percent,
            seed=settings.sim_seed,
            token_bytes=settings.sim_token_bytes,
        ),
    )


def core_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The core's environment: the server's, and huge pages for torch's memory unless it says otherwise."""
    return {"THP_MEM_ALLOC_ENABLE": "1", **environ}


class CoreProcess:
    """One life of the core process; made by `start`, ended by `stop`."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: ServerChannel, board: BoardReader, pool_fd: int
    ) -> None:
        self._process = process
        self._channel = channel
        self._board = board
        self._pool_fd = pool_fd
        self._memory: KVMemory | None = None
        self._sent = 0
        self._seen_taken = 0
        self._waiting_since_ns = 0

    @classmethod
    async def start(cls, config: CoreConfig) -> "CoreProcess":
        """Start the process; it loads from now on and says so in its messages."""
        ours, theirs = socket.socketpair()
        pool_fd, board_fd = create_shared("triptych-kv"), create_board()
        passed = (theirs.fileno(), pool_fd, board_fd)
        told = _with_descriptors(config, *passed)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "triptych_engine.core",
                encode_config(told),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=passed,
                env=core_environment(os.environ),
            )
            board = BoardReader(board_fd)
        except BaseException:
            ours.close()
            os.close(pool_fd)
            raise
        finally:
            theirs.close()
            os.close(board_fd)
        return cls(process, await ServerChannel.open(ours), board, pool_fd)

    @property
    def returncode(self) -> int | None:
        """Exit status of the process, None while it runs."""
        return self._process.returncode

    def send(self, message: Inbox) -> None:
        """Queue one message; raises `ConnectionError` once the core is gone."""
        if self._board.sample().taken >= self._sent:
            self._waiting_since_ns = time.monotonic_ns()
        self._channel.send(message)
        self._sent += 1

    async def messages(self) -> AsyncIterator[Outbox]:
        """All that the core says, until it is gone."""
        async for message in self._channel:
            yield message

    def map_pool(self, layout: KVLayout) -> memoryview:
        """Map the KV pool, which the core has sized."""
        self._memory = KVMemory(self._pool_fd, layout.pool_bytes)
        return self._memory.view

    def board(self) -> BoardSample:
        """How the running step is going; needs no answer of the core."""
        return self._board.sample()

    def stuck_ms(self) -> float:
        """For how long the core has done nothing although there is work: the age of its step, or of unread messages.

        A core that stopped between two steps shows no running step; but it no longer takes what it is sent.
        """
        now_ns, board = time.monotonic_ns(), self._board.sample()
        if board.started_ns:
            return board.age_ms(now_ns=now_ns)
        if board.taken >= self._sent:
            return 0.0
        if board.taken != self._seen_taken:
            self._seen_taken, self._waiting_since_ns = board.taken, now_ns
        return max(0, now_ns - self._waiting_since_ns) / 1e6

    async def stop(self) -> None:
        """Ask the core to end, then insist; releases the pool, into which no view may be left."""
        with contextlib.suppress(ConnectionError):
            self._channel.send(Shutdown())
        try:
            async with asyncio.timeout(EXIT_DEADLINE_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._channel.close()
        self._board.close()
        if self._memory is not None:
            self._memory.close()
        else:
            os.close(self._pool_fd)


def _with_descriptors(config: CoreConfig, socket_fd: int, pool_fd: int, board_fd: int) -> CoreConfig:
    return msgspec.structs.replace(
        config, socket_fd=socket_fd, pool_fd=pool_fd, board_fd=board_fd, parent_pid=os.getpid()
    )
