"""A peer with the token that lies: a producer about what it sends, a consumer about what it may take."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from fakes.kv_nodes import LAYOUT, grant, node, pair, record, wanted
from fakes.raw_links import Liar, ask, greeted, read, truth_of, write
from triptych_contract.handover import BlockAddress, Manifest, Pull, Refused, Released, Taken, Welcome
from triptych_contract.registry import MemoryRegistry

Lie = Callable[[Manifest], Manifest]


def lie(**changes: object) -> Lie:
    def told(truth: Manifest) -> Manifest:
        first = msgspec.structs.replace(truth.blocks[0], **changes)
        return msgspec.structs.replace(truth, blocks=(first, *truth.blocks[1:]))

    return told


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(lie(index=1), id="index"),
        pytest.param(lie(identity=b"\x09" * 32), id="identity"),
        pytest.param(lie(first_token=8), id="first token"),
        pytest.param(lie(tokens=7), id="tokens"),
        pytest.param(lie(size_bytes=1 << 60), id="size"),
        pytest.param(lie(address=BlockAddress(rank=1)), id="address"),
        pytest.param(lambda truth: msgspec.structs.replace(truth, blocks=truth.blocks[:-1]), id="one block less"),
        pytest.param(lambda truth: msgspec.structs.replace(truth, lease="9" * 32), id="another lease"),
        pytest.param(lambda truth: Released(truth.lease), id="another frame"),
    ],
)
async def test_a_manifest_that_differs_from_what_was_asked_discards_all(told: Lie) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        write(writer, Welcome("liar"))
        pull = await read(reader)
        if isinstance(pull, Taken):  # on its own link: what was pulled in vain is given back
            return
        assert isinstance(pull, Pull)
        write(writer, told(truth_of(pull)))
        await reader.read()

    async with Liar(answer) as (port, registry), node("p", MemoryRegistry()) as p, node("d", registry) as d:
        ticket = msgspec.structs.replace(grant(p), remote_engine_id="liar", remote_port=port)
        ended = await d.handover.pull(ticket, wanted(ticket), 2.0)
        assert (ended.ok, ended.reason) == (False, "manifest")
        assert bytes(d.pool) == bytes(len(d.pool))


@pytest.mark.parametrize(
    "answer_bytes",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x04\x00\x00\x00abcd", b"\x80\x04\x95\x10"],
    ids=["over the bound", "empty", "no frame", "an object of another language"],
)
async def test_bytes_that_are_no_frame_are_a_broken_link(answer_bytes: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(answer_bytes)
        await reader.read()

    async with Liar(answer) as (port, registry), node("p", MemoryRegistry()) as p, node("d", registry) as d:
        ticket = msgspec.structs.replace(grant(p), remote_engine_id="liar", remote_port=port)
        ended = await d.handover.pull(ticket, wanted(ticket), 2.0)
        assert (ended.ok, ended.reason) == (False, "unreachable")


async def test_another_instance_at_the_producers_address_is_refused() -> None:
    registry = MemoryRegistry()
    async with node("p", registry) as p, node("q", registry) as q, node("d", registry) as d:
        await registry.register(record("p", q.port))
        ticket = msgspec.structs.replace(grant(p), remote_port=q.port)
        ended = await d.handover.pull(ticket, wanted(ticket))
        assert (ended.ok, ended.reason) == (False, "refused")
        assert q.handover.counts().blocks_sent == 0


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(lambda lease: Pull("9" * 32, ()), id="unknown lease"),
        pytest.param(lambda lease: Pull(lease, ((99, b"", 8),)), id="outside of the lease"),
        pytest.param(lambda lease: Pull(lease, ((-1, b"", 8),)), id="negative index"),
        pytest.param(lambda lease: Pull(lease, ((0, b"\x77" * 32, 8),)), id="foreign identity"),
        pytest.param(lambda lease: Pull(lease, ((2, b"", 8),)), id="stale slots of the tail"),
        pytest.param(lambda lease: Pull(lease, ((0, b"\x01" * 32, 8),) * 2), id="the same block twice"),
    ],
)
async def test_a_pull_beyond_the_lease_is_refused_and_the_link_lives_on(frame: Callable[[str], Pull]) -> None:
    async with pair() as (p, _, _registry):
        ticket = grant(p, tokens=20)
        async with greeted(p, LAYOUT) as link:
            refused = await ask(link, frame(ticket.lease))
            assert isinstance(refused, Refused)
            assert refused.code == "handover_refused"
            assert p.handover.counts().refused == 1
            assert isinstance(await ask(link, Taken(ticket.lease)), Released)
            assert isinstance(await ask(link, Taken(ticket.lease)), Released)
