"""From a sound file to settings of a local service: which executor, which folder, how many threads."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from triptych_operator.local_service import LocalSettings
from triptych_operator.model_source import Folder, SourceFailed, Sources, resolve
from triptych_operator.platforms.commands import Commands, Programs, threads_for
from triptych_operator.spec.types import LLMService
from triptych_operator.state_dir import StateDirectory

NO_TORCH = "PyTorch is not installed; install it with pip install 'triptych[engine]', or run with --engine sim"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which executor runs; `notice` tells a person why, where that is not plain."""

    engine: str
    notice: str = ""


def choose_engine(service: LLMService, *, wanted: str, torch_installed: bool) -> Choice:
    """`torch` or `sim`, from the command line's wish, the spec's profile and what is installed.

    Raises:
        SourceFailed: What is wanted cannot run here; the message says what to do.
    """
    spec = service.spec
    if wanted == "sim" or (wanted == "auto" and spec.engine.profile == "sim"):
        return Choice("sim")
    if spec.encode is not None:
        raise SourceFailed("the PyTorch engine has no vision model yet: run encode with engine.profile: sim")
    if torch_installed:
        return Choice("torch")
    if wanted == "auto" and spec.engine.profile == "auto" and spec.model.source.startswith("demo://"):
        return Choice("sim", f"running the simulated engine: {NO_TORCH.split(', or', maxsplit=1)[0]}")
    raise SourceFailed(NO_TORCH)


def has_torch() -> bool:
    """True if PyTorch can be imported, without importing it."""
    return importlib.util.find_spec("torch") is not None


def prepare(
    service: LLMService,
    *,
    engine: str,
    sources: Sources,
    state: StateDirectory,
    port: int,
    source: str,
    programs: Programs | None = None,
) -> LocalSettings:
    """Settings to run; fetches the model if it has to, so it may take long.

    Raises:
        SourceFailed: The model cannot be had.
    """
    folder = resolve(service.spec.model, sources) if engine == "torch" else None
    commands = Commands(
        service=service,
        model_dir=folder.path if folder else None,
        discovery=state.instances,
        token_file=state.token_file,
        threads=threads_for(service, os.cpu_count() or 1),
        max_context=context_of(service, folder),
        device="auto" if service.spec.engine.profile in ("auto", "sim") else service.spec.engine.profile,
        programs=programs or Programs(),
    )
    return LocalSettings(service, state, commands, port, source, engine)


def context_of(service: LLMService, folder: Folder | None) -> int:
    """The wanted context, within what the model can do."""
    wanted = service.spec.engine.max_context
    return min(wanted, folder.max_context) if folder and folder.max_context else wanted


def no_demo() -> Path:
    """Stands for the demo model where the engine package is out of reach."""
    raise RuntimeError("give its folder with --model, or run it with triptych up")
