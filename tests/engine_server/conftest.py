"""Real engines for tests of the server as its clients see it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.fleet import Fleet, fleet_in


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """An empty fleet that ends with the test."""
    async with fleet_in(tmp_path) as made:
        yield made
