"""`python -m triptych_engine.core CONFIG`: start-up and end of the core process.

The server makes the descriptors, this process sizes the KV pool once the layout is known, and `Ready` tells
the server to map it. The process ends with its channel; where the kernel can be asked to, also with its parent.
"""

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from triptych_contract.clock import SystemClock
from triptych_contract.errors import TriptychError
from triptych_contract.program.logs import set_up_logging
from triptych_engine import failpoints
from triptych_engine.channel import ChannelBroken, ChannelClosed, CoreChannel
from triptych_engine.core.board import BoardWriter
from triptych_engine.core.config import CoreConfig, decode_config
from triptych_engine.core.engine import Core, CoreFault, ready
from triptych_engine.core.loop import CoreLoop
from triptych_engine.executor.base import Executor, LoadProgress
from triptych_engine.kv.memory import KVMemory
from triptych_engine.linux import die_with_parent
from triptych_engine.messages import CoreFailed, Progress

_LOG = logging.getLogger("triptych_engine.core")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


class StartFailure(TriptychError):
    """Loading failed for a reason that the engine's owner can do something about."""


def main(arguments: list[str]) -> int:
    """Run the core process; the result is its exit code."""
    die_with_parent(os.getppid())
    # Ctrl-C reaches the whole group; the server drains first and then closes the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = decode_config(arguments[0])
        failpoints.arm(os.environ if config.enable_failpoints else {})
    except (IndexError, ValueError, msgspec.MsgspecError):
        print("the core process is started by triptych-engine, with its configuration", file=sys.stderr)
        return EXIT_USAGE
    set_up_logging(config.log_level)
    if config.parent_pid and os.getppid() != config.parent_pid:
        return EXIT_OK  # the server ended before the kernel was asked to watch it
    channel = CoreChannel(socket.socket(fileno=config.socket_fd))
    try:
        return run(config, channel)
    except ChannelClosed:
        return EXIT_OK
    except ChannelBroken:
        _LOG.exception("the channel to the server broke")
        return EXIT_FAILED
    finally:
        channel.close()


def run(config: CoreConfig, channel: CoreChannel) -> int:
    """Load, tell the server, and loop until it says stop."""

    def progress(percent: int, text: str) -> None:
        channel.send(Progress(percent=percent, text=text))

    try:
        executor = load(config, progress)
        bind_pool(config, executor)
        executor.warm_up()
    except Exception as error:
        _LOG.exception("the model could not be loaded: %s", error)
        channel.send(CoreFailed(message=_safe(error)))
        return EXIT_FAILED
    clock = SystemClock()
    board = BoardWriter(config.board_fd)
    core = Core(executor, config, clock=clock, send=channel.send, board=board)
    channel.send(ready(executor.info))
    try:
        CoreLoop(core, channel, clock=clock, on_taken=board.take).run()
    except ConnectionError:
        raise
    except Exception as error:
        _LOG.exception("the core cannot go on: %s", error)
        channel.send(CoreFailed(message=str(error) if isinstance(error, CoreFault) else "The engine has failed."))
        return EXIT_FAILED
    return EXIT_OK


def load(config: CoreConfig, progress: LoadProgress) -> Executor:
    """The executor that the configuration names; torch is imported only where it is used."""
    if config.kind == "sim":
        from triptych_engine.executor.sim import load_sim  # noqa: PLC0415

        progress(100, "simulated model")
        return load_sim(config)
    if config.kind != "torch" or config.model_dir is None:
        raise StartFailure("The engine was started without a model.")
    try:
        from triptych_engine.executor.torch import load_torch  # noqa: PLC0415
        from triptych_engine.model.errors import ModelFolderError  # noqa: PLC0415
    except ImportError as error:
        raise StartFailure("PyTorch is not installed; install triptych with its engine extra.") from error
    try:
        return load_torch(
            model_dir=Path(config.model_dir),
            dtype=config.dtype,
            device=config.device,
            threads=config.threads,
            kv_blocks=config.kv_blocks,
            kv_memory_bytes=config.kv_memory_bytes,
            max_context=config.max_context,
            progress=progress,
            kernels=config.kernels,
        )
    except ModelFolderError as error:
        raise StartFailure(str(error)) from error


def bind_pool(config: CoreConfig, executor: Executor) -> None:
    """Give the shared memory its size and the executor its bytes."""
    pool_bytes = executor.info.layout.pool_bytes
    os.ftruncate(config.pool_fd, pool_bytes)
    executor.bind(KVMemory(config.pool_fd, pool_bytes).view)


def _safe(error: Exception) -> str:
    """A sentence without paths and library text; what else happened stands in the log."""
    if isinstance(error, TriptychError):
        return error.message
    if isinstance(error, MemoryError):
        return "The model does not fit into memory."
    return "The model could not be loaded; the engine's log has the cause."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
