"""One thread, and each oracle model made once for the session."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the engine extra")
pytest.importorskip("transformers", reason="transformers is the oracle")

from fakes.oracle_models import make_oracle, save_oracle  # noqa: E402
from triptych_engine import kernels  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Kind → transformers model and its folder."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(kind: str) -> tuple[Any, Path]:
        if kind not in made:
            model = make_oracle(kind)
            made[kind] = (model, save_oracle(model, tmp_path_factory.mktemp(kind)))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the CPU kernels, compiled once for the session."""
    if shutil.which(os.environ.get("CXX") or "g++") is None:
        pytest.skip("no C++ compiler")
    cache = tmp_path_factory.mktemp("cache")
    kernels.build({**os.environ, "XDG_CACHE_HOME": str(cache)})
    return cache
