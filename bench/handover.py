"""Hand-over over TCP on one host, checksums included.

Two processes with the real leases, KV link and verification; 256 MiB of KV a pull. The pools are shared memory
that has been touched, as it has been in an engine that runs.
"""

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from bench.report import Row
from triptych_contract.clock import SystemClock
from triptych_contract.codec import decode_json, encode_json
from triptych_contract.handover import Ticket
from triptych_contract.ids import random_id
from triptych_contract.instance import InstanceRecord
from triptych_contract.profile import StepProfile
from triptych_contract.registry import MemoryRegistry
from triptych_engine.kv.layout import KVLayout
from triptych_engine.kv.memory import KVMemory, create_shared
from triptych_engine.messages import Inbox, LeaseGranted, PullBlock, PullWanted, Ready
from triptych_engine.transfer.service import Handover

TOTAL_BYTES = 256 * 1024 * 1024
RUNS = 7
TARGET = "at least 1 GB/s"
SEGMENTS, BLOCK_TOKENS = 448, 32
LAYOUTS = {
    "3.5 MiB blocks": KVLayout(num_blocks=74, segments=SEGMENTS, block_tokens=BLOCK_TOKENS, token_bytes=256),
    "128 KiB blocks": KVLayout(num_blocks=2049, segments=16, block_tokens=BLOCK_TOKENS, token_bytes=256),
}
DEADLINE_S = 120.0


def run() -> list[Row]:
    """GB/s of whole pulls, for blocks of a 0.6B model and for small ones."""
    return [Row(f"{name}, xxh3-64 verified", asyncio.run(_measure(name)), "GB/s", TARGET) for name in LAYOUTS]


async def _measure(name: str) -> list[float]:
    layout = LAYOUTS[name]
    token = secrets.token_hex(16)
    registry = MemoryRegistry()
    with _producer(name, token) as child:
        port = int(_read(child))
        await registry.register(InstanceRecord("p", random_id(), "default", "127.0.0.1", 1, port))
        async with _handover("d", token, registry, layout) as (handover, _):
            rates = [await _pull(handover, _ask(child), layout) for _ in range(RUNS + 1)]
            await asyncio.sleep(0.05)
    return rates[1:]


async def _pull(handover: Handover, ticket: Ticket, layout: KVLayout) -> float:
    blocks = tuple(
        PullBlock(index, index + 1, _identity(index), layout.block_tokens) for index in range(layout.num_blocks - 1)
    )
    started_s = time.perf_counter()
    ended = await handover.pull(ticket, PullWanted("r", ticket.lease, blocks), DEADLINE_S)
    elapsed_s = time.perf_counter() - started_s
    if not ended.ok:
        raise RuntimeError(f"the transfer failed: {ended.reason}")
    return len(blocks) * layout.block_bytes / elapsed_s / 1e9


@contextlib.contextmanager
def _producer(name: str, token: str) -> "Iterator[subprocess.Popen[bytes]]":
    command = [sys.executable, "-m", "bench.handover", name]
    environment = {**os.environ, "TRIPTYCH_BENCH_TOKEN": token}
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=root) as child:
        try:
            yield child
        finally:
            child.kill()


def _ask(child: "subprocess.Popen[bytes]") -> Ticket:
    if child.stdin is None:
        raise RuntimeError("the producer has no input")
    child.stdin.write(b"\n")
    child.stdin.flush()
    return decode_json(_read(child), Ticket)


def _read(child: "subprocess.Popen[bytes]") -> bytes:
    line = child.stdout.readline() if child.stdout else b""
    if not line:
        raise RuntimeError("the producer ended")
    return line


@contextlib.asynccontextmanager
async def _handover(
    name: str, token: str, registry: MemoryRegistry | None, layout: KVLayout
) -> AsyncIterator[tuple[Handover, int]]:
    memory = KVMemory(create_shared("bench", layout.pool_bytes), layout.pool_bytes)
    memory.view[:] = os.urandom(1 << 16) * (layout.pool_bytes >> 16) + bytes(layout.pool_bytes & 0xFFFF)
    told: list[Inbox] = []
    handover = Handover(
        instance_id=name,
        service_token=token,
        link_host="127.0.0.1",
        registry=registry,
        service="default",
        clock=SystemClock(),
        new_id=random_id,
        core_send=told.append,
        lease_ttl_ms=60_000,
    )
    ready = Ready(layout, "f" * 16, "bfloat16", 1000, 4096, StepProfile())
    port = await handover.start(ready, memory.view)
    try:
        yield handover, port
    finally:
        await handover.stop()
        memory.close()


def _identity(index: int) -> bytes:
    return index.to_bytes(32, "little")


async def _produce(name: str) -> None:
    """The other process: for each line on the input, a ticket for all blocks."""
    layout = LAYOUTS[name]
    count = layout.num_blocks - 1
    identities = tuple(_identity(index) for index in range(count))
    async with _handover("p", os.environ["TRIPTYCH_BENCH_TOKEN"], None, layout) as (handover, port):
        print(port, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            granted = LeaseGranted(
                "r", random_id(), tuple(range(1, count + 1)), identities, count * layout.block_tokens
            )
            sys.stdout.write(encode_json(handover.grant(granted, "r")).decode() + "\n")
            sys.stdout.flush()


def main() -> None:
    """Print the rates, or be the producer if a layout is named."""
    if len(sys.argv) > 1:
        asyncio.run(_produce(sys.argv[1]))
        return
    for row in run():
        samples = ", ".join(f"{sample:.2f}" for sample in sorted(row.samples))
        print(f"{row.what}: {samples} {row.unit}")


if __name__ == "__main__":
    main()
