"""Two ends of a hand-over in one process: real `Handover` objects over loopback, with pools made by hand."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import msgspec

from fakes.tcp_proxy import TcpProxy
from triptych_contract.clock import Clock, SystemClock
from triptych_contract.handover import EmbeddingTicket, Ticket
from triptych_contract.instance import InstanceRecord
from triptych_contract.profile import StepProfile
from triptych_contract.registry import MemoryRegistry, Registry
from triptych_engine.kv.layout import KVLayout
from triptych_engine.messages import Inbox, LeaseGranted, PullBlock, PullWanted, Ready
from triptych_engine.transfer.service import Handover

TOKEN = "a-service-token-of-tests"
LAYOUT = KVLayout(num_blocks=16, segments=4, block_tokens=8, token_bytes=16)
STALE = 0xEE
AnyTicket = TypeVar("AnyTicket", Ticket, EmbeddingTicket)


@dataclass
class Node:
    """One instance's hand-over and what surrounds it."""

    id: str
    handover: Handover
    pool: bytearray
    layout: KVLayout
    to_core: list[Inbox]
    port: int = 0
    seconds: list[float] = field(default_factory=list)

    def block(self, block: int) -> bytes:
        size = self.layout.block_bytes
        return bytes(self.pool[block * size : (block + 1) * size])

    def fill(self, block: int, value: int) -> None:
        size = self.layout.block_bytes
        pattern = bytes((value * 31 + at * 7) % 197 for at in range(199))
        self.pool[block * size : (block + 1) * size] = (pattern * (size // 199 + 1))[:size]

    def valid(self, block: int, tokens: int) -> bytes:
        whole, segment = self.block(block), self.layout.segment_bytes
        length = tokens * self.layout.token_bytes
        return b"".join(whole[at * segment : at * segment + length] for at in range(self.layout.segments))


def ready(layout: KVLayout, **changes: object) -> Ready:
    message = Ready(
        layout=layout,
        fingerprint="f" * 16,
        kv_dtype="int32",
        vocab_size=256,
        max_context=4096,
        profile=StepProfile(),
        embedding_dtype="int32",
        embedding_bytes=8,
    )
    return msgspec.structs.replace(message, **changes)


def ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{next(numbers):032x}"


@contextlib.asynccontextmanager
async def node(
    name: str,
    registry: Registry | None,
    *,
    layout: KVLayout = LAYOUT,
    ttl_ms: int = 2000,
    clock: Clock | None = None,
    service: str = "default",
    token: str = TOKEN,
    **changes: object,
) -> AsyncIterator[Node]:
    """A started `Handover`, registered in discovery."""
    to_core: list[Inbox] = []
    seconds: list[float] = []
    handover = Handover(
        instance_id=name,
        service_token=token,
        link_host="127.0.0.1",
        registry=registry,
        service=service,
        clock=clock or SystemClock(),
        new_id=ids(),
        core_send=to_core.append,
        lease_ttl_ms=ttl_ms,
        on_pull_seconds=seconds.append,
    )
    pool = bytearray(layout.pool_bytes)
    made = Node(name, handover, pool, layout, to_core, seconds=seconds)
    made.port = await handover.start(ready(layout, **changes), memoryview(pool))
    if registry is not None:
        await registry.register(record(name, made.port, service=service))
    try:
        yield made
    finally:
        await handover.stop()


def record(name: str, kv_port: int, *, service: str = "default", host: str = "127.0.0.1") -> InstanceRecord:
    return InstanceRecord(name, "0" * 32, service, host, 1, kv_port)


@contextlib.asynccontextmanager
async def pair(**options: object) -> AsyncIterator[tuple[Node, Node, MemoryRegistry]]:
    """Producer `p`, consumer `d`, and their discovery."""
    registry = MemoryRegistry()
    async with node("p", registry, **options) as p, node("d", registry, **options) as d:
        yield p, d, registry


def grant(p: Node, *, tokens: int = 20, lease: str = "1" * 32, blocks: tuple[int, ...] = (3, 5, 4)) -> Ticket:
    """Lease blocks with known bytes; every slot after the last token is marked stale."""
    block_tokens = p.layout.block_tokens
    full = tokens // block_tokens
    for block in blocks:
        p.fill(block, block)
    if tail := tokens % block_tokens:
        mark_stale(p, blocks[full], tail)
    identities = tuple(bytes([index + 1]) * 32 for index in range(full))
    return p.handover.grant(LeaseGranted("req", lease, blocks, identities, tokens), "req")


async def detour(ticket: AnyTicket, registry: MemoryRegistry, proxy: TcpProxy) -> AnyTicket:
    """The ticket with its producer behind a proxy, as discovery then says too."""
    await registry.register(record(ticket.remote_engine_id, proxy.port))
    return msgspec.structs.replace(ticket, remote_port=proxy.port)


def mark_stale(p: Node, block: int, tokens: int) -> None:
    first = block * p.layout.block_bytes
    for segment in range(p.layout.segments):
        start = first + segment * p.layout.segment_bytes
        stale = slice(start + tokens * p.layout.token_bytes, start + p.layout.segment_bytes)
        p.pool[stale] = bytes([STALE]) * (stale.stop - stale.start)


def wanted(ticket: Ticket, layout: KVLayout = LAYOUT, *, first_block: int = 0, own: int = 7) -> PullWanted:
    """All blocks of the ticket from a chain index on, into own physical blocks from `own` on."""
    blocks = []
    total = -(-ticket.remote_num_tokens // layout.block_tokens)
    for at, index in enumerate(range(first_block, total)):
        tokens = min(layout.block_tokens, ticket.remote_num_tokens - index * layout.block_tokens)
        identity = bytes([index + 1]) * 32 if tokens == layout.block_tokens else b""
        blocks.append(PullBlock(index, own + at, identity, tokens))
    return PullWanted("own", ticket.lease, tuple(blocks))


async def until(condition: Callable[[], bool], *, deadline_s: float = 5.0) -> None:
    """Wait until a condition of another task holds."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
