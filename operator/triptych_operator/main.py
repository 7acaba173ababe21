"""`triptych-operator`: reads one LLMService file and keeps its service running on this machine."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from triptych_contract.program.stdin import when_stdin_ends
from triptych_operator.local_service import LocalService, LocalSettings
from triptych_operator.local_start import choose_engine, has_torch, no_demo, prepare
from triptych_operator.model_source import SourceFailed, Sources
from triptych_operator.settings import Settings, read_settings
from triptych_operator.spec import BadSpec, LLMService, load_file
from triptych_operator.state_dir import AlreadyRunning, StateDirectory


def run(arguments: list[str] | None = None) -> None:
    """Entry point; exits 0 after a drain, 1 where the service cannot run, 2 for a bad file or command line."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    sys.exit(_main(settings))


def _main(settings: Settings) -> int:
    try:
        service = load_file(settings.file).service
    except BadSpec as bad:
        sys.stderr.write(f"{bad}\n")
        return 2
    if settings.model is not None:
        service = _with_folder(service, settings.model)
    state = StateDirectory(settings.state_dir or settings.state_root() / service.name)
    try:
        choice = choose_engine(service, wanted="sim" if settings.sim else "auto", torch_installed=has_torch())
        with state.held():
            sources = Sources(no_demo, settings.file.resolve().parent, os.environ, progress=sys.stderr.isatty())
            local = prepare(
                service,
                engine=choice.engine,
                sources=sources,
                state=state,
                port=settings.port,
                source=str(settings.file.resolve()),
            )
            asyncio.run(_serve(local, exit_with_stdin=settings.exit_with_stdin))
    except (SourceFailed, AlreadyRunning, OSError) as failed:
        sys.stderr.write(f"triptych-operator: {failed}\n")
        return 1
    return 0


def _with_folder(service: LLMService, folder: Path) -> LLMService:
    model = msgspec.structs.replace(service.spec.model, source=f"host://{folder.resolve()}")
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, model=model))


async def _serve(settings: LocalSettings, *, exit_with_stdin: bool) -> None:
    """Run until SIGINT, SIGTERM or, where asked for, the end of stdin."""
    service = LocalService(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, service.stop)
    if exit_with_stdin:
        when_stdin_ends(loop, service.stop)
    await service.run()


if __name__ == "__main__":
    run()
