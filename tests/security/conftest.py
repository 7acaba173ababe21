"""One fleet of real programs for the whole folder: three engines, and a router with the keys of two tenants."""

import hashlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from fakes.fleet import Fleet, fleet_in
from fakes.hostile import KEYS, Bystander, Target, key_of, rss_bytes

PROFILE = ("--sim-profile", "0.002,0.000001,0,0,0")
GROWTH_BYTES = 192 * 1024 * 1024
"""What a program may hold more after a whole module of bad requests: less than a few bodies of the largest size."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here that run a coroutine share the loop of the fleet."""
    for item in items:
        if "security" in item.path.parts and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """`prefill-0`, `decode-0`, `mixed-0` and a router, which end with the last test of the folder."""
    directory = tmp_path_factory.mktemp("security")
    async with fleet_in(directory) as made:
        keys = directory / "keys"
        keys.write_text("".join(f"{n}:{hashlib.sha256(k.encode()).hexdigest()}\n" for n, k in KEYS.items()))
        for name in ("prefill-0", "decode-0", "mixed-0"):
            await made.start_engine(name, name.split("-")[0], *PROFILE)
        await made.start_router("--api-keys", str(keys), "--handover-min-tokens", "16")
        yield made


@pytest.fixture(params=["router", "mixed-0"], ids=["router", "engine"])
def target(request: pytest.FixtureRequest, fleet: Fleet) -> Target:
    """Both kinds of programs that clients may reach."""
    name: str = request.param
    return Target(name, fleet.children[name], key_of("alice") if name == "router" else {})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def unharmed(fleet: Fleet) -> AsyncIterator[Fleet]:
    """The fleet, and around all tests of a module: a stream that must flow unchanged, lives, memory, nothing left."""
    children = list(fleet.children.values())
    lives = {child.name: (child.pid, child.core_pids()) for child in children}
    before = {child.name: rss_bytes(child) for child in children}
    async with Bystander(fleet, key_of("bob")):
        yield fleet
    assert {child.name: (child.pid, child.core_pids()) for child in children} == lives, "a program has died"
    assert all(child.process.returncode is None for child in children)
    for child in children:
        grown = rss_bytes(child) - before[child.name]
        assert grown < GROWTH_BYTES, f"{child.name} has grown by {grown} bytes"
    await fleet.settled()
