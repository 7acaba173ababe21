"""A router in this process in front of fake engines."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fakes.fake_engine import TOKEN, FakeEngine, running, until
from triptych_contract.registry import MemoryRegistry
from triptych_router.server import Router, serving
from triptych_router.settings import Settings, read_settings

PROMPT = " ".join(f"word{i}" for i in range(60))


class Bench:
    """Router, engines and a client session of one test."""

    def __init__(self, router: Router, registry: MemoryRegistry, http: aiohttp.ClientSession) -> None:
        self.router = router
        self.registry = registry
        self.http = http
        self.url = f"http://127.0.0.1:{router.port}"

    async def post(self, body: dict[str, Any], *, path: str = "/v1/completions", **more: Any) -> tuple[int, bytes, Any]:
        """Status, body and headers of a request."""
        async with self.http.post(self.url + path, json=body, **more) as answer:
            return answer.status, await answer.read(), answer.headers

    async def ready(self) -> None:
        """Wait until the router has a view and a route."""
        await until(self.router.front.ready, what="the router is ready")

    def quiet(self) -> bool:
        """Nothing in flight, nothing charged."""
        services = self.router.services
        return services.gate.in_flight == 0 and services.gate.waiting == 0 and not services.book.view()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with the service token, on a free port."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return read_settings(
        ["--discovery", f"local:{tmp_path}/d", "--token-file", str(token), "--port", "0", "--expose-route"]
    )


@pytest.fixture
def bench(settings: Settings):
    """`async with bench(engine, …, flag=value) as b`."""

    @contextlib.asynccontextmanager
    async def start(*engines: FakeEngine, wait: bool = True, **flags: Any) -> AsyncIterator[Bench]:
        registry = MemoryRegistry()
        async with running(registry, *engines):
            async with serving(dataclasses.replace(settings, **flags), registry=registry) as router:
                async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                    made = Bench(router, registry, http)
                    if wait:
                        await made.ready()
                    yield made
                    await until(made.quiet, what="all counters are back at zero")

    return start
