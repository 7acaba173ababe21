"""Where a model is: `demo://`, `host://PATH` and `hf://REPO[@REVISION]` become a folder on this machine."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_operator.spec.types import Model

MAX_CONFIG_BYTES = 1 << 20


class SourceFailed(Exception):
    """The model cannot be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with weights.

    Attributes:
        path: Absolute.
        max_context: Longest context that its configuration allows; 0 if it does not say.
    """

    path: Path
    max_context: int = 0


@dataclass(frozen=True, slots=True)
class Sources:
    """What resolving needs from outside.

    Attributes:
        demo: Gives the folder of the demo model.
        base: Relative `host://` paths start here (the folder of the LLMService file).
        environ: For HF_TOKEN and HF_ENDPOINT.
        cache: Folder of fetched repositories; None is the hub library's own.
        progress: Show progress bars on stderr while fetching.
    """

    demo: Callable[[], Path]
    base: Path
    environ: Mapping[str, str]
    cache: Path | None = None
    progress: bool = True


def resolve(model: Model, sources: Sources) -> Folder:
    """The folder of a model, fetched first where it has to be. May take long: run it off the event loop.

    Raises:
        SourceFailed: It cannot be had.
    """
    scheme, _, rest = model.source.partition("://")
    if scheme == "demo":
        return _demo(sources)
    if scheme == "host":
        return _checked((sources.base / Path(rest).expanduser()).resolve(), model.source)
    if scheme == "hf":
        return _fetched(rest, model.revision, sources)
    raise SourceFailed(f"{model.source} is not served here; write demo://, hf://REPO or host://PATH")


def _demo(sources: Sources) -> Folder:
    try:
        path = sources.demo()
    except (OSError, RuntimeError) as error:
        raise SourceFailed(f"the demo model is not there ({error}); reinstall triptych") from None
    return _checked(path, "demo://")


def _fetched(rest: str, revision: str, sources: Sources) -> Folder:
    from triptych_operator.hub import Hub, HubFailed, fetch  # noqa: PLC0415 - takes long, and only hf:// needs it

    repo, _, pinned = rest.strip("/").partition("@")
    hub = Hub(
        endpoint=sources.environ.get("HF_ENDPOINT") or None,
        token=sources.environ.get("HF_TOKEN") or None,
        cache=sources.cache,
        progress=sources.progress,
    )
    try:
        return _checked(fetch(repo, pinned or revision, hub), f"hf://{rest}")
    except HubFailed as failed:
        raise SourceFailed(str(failed)) from None


def _checked(path: Path, source: str) -> Folder:
    """The folder if it looks like one of weights; the engine itself judges what is in it."""
    config = path / "config.json"
    try:
        if not path.is_dir():
            raise SourceFailed(f"{source}: there is no folder {path}; write host://PATH of a Hugging Face folder")
        if not config.is_file():
            raise SourceFailed(f"{source}: {path} has no config.json; write the path of a Hugging Face folder")
    except PermissionError:
        raise SourceFailed(f"{source}: you may not read {path}; mend its permissions with chmod") from None
    return Folder(path, _max_context(config))


def _max_context(config: Path) -> int:
    try:
        with config.open("rb") as file:
            loaded: Any = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError):
        return 0
    found = loaded.get("max_position_embeddings") if isinstance(loaded, dict) else None
    return found if isinstance(found, int) and found > 0 else 0
