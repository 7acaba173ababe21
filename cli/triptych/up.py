"""`triptych up`: from one file to a service that answers.

file → spec → executor and model folder → hold the name → operator loop
                                                           └ ready → banner → ask → stay | stop
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.status import Status

from triptych.ask import Proof, ask_one, is_disaggregated
from triptych.banner import announce, show_proof
from triptych.failure import USAGE, Failure
from triptych_operator.local_service import LocalService, LocalSettings
from triptych_operator.local_start import choose_engine, has_torch, prepare
from triptych_operator.model_source import SourceFailed, Sources
from triptych_operator.platforms.commands import Programs
from triptych_operator.spec import BadSpec, LLMService, load_file
from triptych_operator.state_dir import AlreadyRunning, StateDirectory, default_root
from triptych_operator.status import ServiceStatus

READY_S = 600.0
"""Patience of `--ask`, `--once` and `--detach`; a model of some GB loads in a minute or two."""
GIVE_UP_CRASHES = 4
"""Crashes in a row of one child after which those three give up: a cause that four starts do not heal stays."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `up`."""

    file: Path
    port: int
    engine: str
    ask: str | None
    once: bool


def read(file: Path) -> LLMService:
    """The service of a file. Raises `Failure` with all faults of it."""
    try:
        return load_file(file).service
    except BadSpec as bad:
        raise Failure(str(bad), code=USAGE) from None


def up(options: Options, *, console: Console, programs: Programs | None = None) -> None:
    """Run a service until it is told to stop, or until its one question is answered."""
    service = read(options.file)
    state = StateDirectory(default_root(os.environ) / service.name)
    try:
        with state.held():
            settings = _settings(service, state, options, console, programs)
            asyncio.run(_Session(settings, options, console).run())
    except AlreadyRunning as held:
        raise Failure(str(held)) from None
    except SourceFailed as failed:
        raise Failure(str(failed)) from None
    except OSError as error:
        raise Failure(
            f"{state.path} cannot be used: {error.strerror}; set XDG_STATE_HOME to a folder of yours"
        ) from None


def _settings(
    service: LLMService, state: StateDirectory, options: Options, console: Console, programs: Programs | None
) -> LocalSettings:
    choice = choose_engine(service, wanted=options.engine, torch_installed=has_torch())
    if choice.notice:
        console.print(choice.notice, style="yellow", markup=False)
    check_port(options.port)
    sources = Sources(demo=_demo, base=options.file.resolve().parent, environ=os.environ, progress=sys.stderr.isatty())
    return prepare(
        service,
        engine=choice.engine,
        sources=sources,
        state=state,
        port=options.port,
        source=str(options.file.resolve()),
        programs=programs,
    )


def _demo() -> Path:
    from triptych_engine.demo import demo_model_dir  # noqa: PLC0415 - other models do not need it

    return Path(demo_model_dir())


def check_port(port: int) -> None:
    """Raise `Failure` if the port is taken; a race with another program shows in the router's log."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise Failure(f"port {port} is in use; take another one with --port, or a free one with --port 0") from None


class _Session:
    """The operator loop beside what the person at the terminal sees."""

    def __init__(self, settings: LocalSettings, options: Options, console: Console) -> None:
        self._settings = settings
        self._options = options
        self._console = console
        self._ready = asyncio.Event()
        self._latest: ServiceStatus | None = None
        self._progress: Status | None = None
        self._told = ""
        self._service = LocalService(settings, on_status=self._on_status)

    async def run(self) -> None:
        """Run to the end; raises `Failure` if the question was not answered as it should be."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._service.stop)
        running = asyncio.create_task(self._service.run(), name="service")
        talking = asyncio.create_task(self._talk(), name="talk")
        try:
            await asyncio.wait({running, talking}, return_when=asyncio.FIRST_COMPLETED)
            failed = talking.done() and talking.exception() is not None
            if talking.done() and (failed or self._options.once):
                self._service.stop()
            await running
        finally:
            talking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await talking

    async def _talk(self) -> None:
        with self._showing_progress():
            await self._until_ready()
        status = self._latest
        if status is None:
            return
        announce(self._console, status, model=self._settings.service.served_name, name=self._settings.service.name)
        if self._options.ask is not None:
            show_proof(self._console, self._options.ask, await self._ask(self._options.ask, status))
        if not self._options.once:
            self._console.print("Ctrl-C stops the service", style="dim")

    async def _ask(self, text: str, status: ServiceStatus) -> Proof:
        with self._console.status("asking"):
            return await ask_one(
                self._settings.state,
                url=status.url,
                model=self._settings.service.served_name,
                text=text,
                disaggregated=is_disaggregated(status.roles),
            )

    async def _until_ready(self) -> None:
        """Wait for readiness; whoever wants an answer does not wait for ever."""
        impatient = self._options.once or self._options.ask is not None
        try:
            await asyncio.wait_for(self._ready.wait(), READY_S if impatient else None)
        except TimeoutError:
            waiting = self._latest.waiting_for if self._latest else "its instances"
            raise Failure(f"not ready after {READY_S:.0f} s; waiting for {waiting}; see: triptych logs") from None
        if self._latest is not None and not self._latest.ready:
            raise Failure(f"{self._latest.waiting_for}; see: triptych logs")

    def _on_status(self, status: ServiceStatus) -> None:
        self._latest = status
        if status.ready or self._hopeless(status):
            self._ready.set()
        elif self._progress is not None and status.waiting_for != self._told:
            self._told = status.waiting_for
            self._progress.update(f"waiting for {_plain(status.waiting_for)}")
            if not self._console.is_terminal:
                self._console.print(f"waiting for {status.waiting_for}", markup=False, soft_wrap=True)

    def _hopeless(self, status: ServiceStatus) -> bool:
        impatient = self._options.once or self._options.ask is not None
        return impatient and status.most_crashes >= GIVE_UP_CRASHES

    @contextlib.contextmanager
    def _showing_progress(self) -> Iterator[None]:
        with self._console.status("starting") as self._progress:
            yield
        self._progress = None


def _plain(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")
