"""One suite for every discovery backend."""

import asyncio

import msgspec
import pytest

from triptych_contract.errors import BadRequest
from triptych_contract.instance import InstanceRecord
from triptych_contract.registry import LocalRegistry, MemoryRegistry

DEADLINE_S = 5.0


def record(name, *, incarnation="0", **changes):
    return InstanceRecord(name, incarnation * 32, "laptop", "127.0.0.1", 8001, 9001, **changes)


@pytest.fixture(params=["local", "memory"])
def registry(request, tmp_path):
    return MemoryRegistry() if request.param == "memory" else LocalRegistry(tmp_path / "d", watch_interval_s=0.01)


async def following(watch):
    async with asyncio.timeout(DEADLINE_S):
        return [found.id for found in await anext(watch)]


async def test_a_record_is_seen_until_it_is_withdrawn(registry):
    assert await registry.snapshot() == ()
    registration = await registry.register(record("a", model="m"))
    assert await registry.snapshot() == (record("a", model="m"),)
    await registration.withdraw()
    assert await registry.snapshot() == ()


async def test_a_second_withdrawal_does_nothing_even_after_the_id_was_taken_again(registry):
    first = await registry.register(record("a"))
    await first.withdraw()
    await registry.register(record("a", incarnation="1"))
    await first.withdraw()
    assert await registry.snapshot() == (record("a", incarnation="1"),)


async def test_records_come_in_the_order_of_their_ids(registry):
    held = [await registry.register(record(name)) for name in ("b", "c", "a")]
    assert [found.id for found in await registry.snapshot()] == ["a", "b", "c"]
    assert len(held) == 3


async def test_a_new_life_of_an_instance_replaces_the_old_one_and_outlives_its_withdrawal(registry):
    old = await registry.register(record("a"))
    new = await registry.register(record("a", incarnation="1"))
    assert await registry.snapshot() == (record("a", incarnation="1"),)
    await old.withdraw()
    assert await registry.snapshot() == (record("a", incarnation="1"),)
    await new.withdraw()
    assert await registry.snapshot() == ()


async def test_the_same_record_twice_stands_until_the_later_registration_is_withdrawn(registry):
    old = await registry.register(record("a"))
    new = await registry.register(record("a"))
    await old.withdraw()
    assert await registry.snapshot() == (record("a"),)
    await new.withdraw()
    assert await registry.snapshot() == ()


async def test_a_malformed_record_is_not_published(registry):
    with pytest.raises(BadRequest):
        await registry.register(msgspec.structs.replace(record("a"), id="../a"))
    assert await registry.snapshot() == ()


async def test_a_watch_gives_the_present_set_and_then_whole_sets(registry):
    held = [await registry.register(record("a"))]
    watch = registry.watch()
    assert await following(watch) == ["a"]
    held.append(await registry.register(record("b")))
    assert await following(watch) == ["a", "b"]
    await held[0].withdraw()
    assert await following(watch) == ["b"]
    await held[1].withdraw()
    assert await following(watch) == []
    await watch.aclose()


async def test_a_watch_of_nothing_begins_with_the_empty_set(registry):
    watch = registry.watch()
    assert await following(watch) == []
    await watch.aclose()


async def test_every_watch_sees_every_change(registry):
    watches = [registry.watch() for _ in range(3)]
    for watch in watches:
        assert await following(watch) == []
    held = await registry.register(record("a"))
    for watch in watches:
        assert await following(watch) == ["a"]
        await watch.aclose()
    await held.withdraw()


async def test_registrations_at_the_same_time_all_stand(registry):
    held = await asyncio.gather(*(registry.register(record(f"i-{number}")) for number in range(20)))
    assert len(await registry.snapshot()) == 20
    await asyncio.gather(*(one.withdraw() for one in held))
    assert await registry.snapshot() == ()
