"""The `triptych` command. Exit codes: 0 done, 1 it failed, 2 bad file or command line, 3 no such service runs."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from triptych import chat as chat_command
from triptych import doctor as doctor_command
from triptych import down as down_command
from triptych import logs as logs_command
from triptych import status as status_command
from triptych.detach import detach as detach_service
from triptych.failure import USAGE, Failure
from triptych.terminal import Terminal
from triptych.up import Options, read
from triptych.up import up as up_service
from triptych_contract import WIRE_VERSION, __version__
from triptych_operator.state_dir import StateDirectory, default_root

app = typer.Typer(
    name="triptych",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Large language models in encode, prefill and decode pools. Start with: triptych up -f examples/laptop.yaml",
    epilog="Exit codes: 0 done, 1 it failed, 2 bad file or command line, 3 no such service runs.",
)


class EngineKind(StrEnum):
    """Which executor runs."""

    AUTO = "auto"
    TORCH = "torch"
    SIM = "sim"


Name = Annotated[str | None, typer.Argument(help="Name of the service; the only running one if left out.")]


@app.command()
def up(  # noqa: PLR0917 - typer reads options from plain parameters
    file: Annotated[Path, typer.Option("-f", "--file", help="LLMService file.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the router; 0 takes a free one.")] = 8000,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the service is ready; it goes on.")] = False,
    engine: Annotated[
        EngineKind, typer.Option(help="auto takes torch where it is installed; sim needs none.")
    ] = EngineKind.AUTO,
    ask: Annotated[
        str | None, typer.Option(help="Ask one question when ready, and prove the hand-over by its counters.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when ready and answered.")] = False,
) -> None:
    """Start a service from a file, keep it running, and stop it with Ctrl-C."""
    options = Options(file=file, port=port, engine=engine.value, ask=ask, once=once)
    if detach:
        if ask is not None or once:
            raise Failure("--detach goes without --ask and --once; ask later with: triptych chat -m TEXT", code=USAGE)
        state = StateDirectory(default_root(os.environ) / read(file).name)
        detach_service(options, state, console=Console())
    else:
        up_service(options, console=Terminal())


@app.command()
def down(
    name: Name = None,
    drain_s: Annotated[float, typer.Option(min=0, help="Drain time of the service, in seconds.")] = 30.0,
) -> None:
    """Drain and stop a service. One that does not run is fine."""
    down_command.down(name, drain_s=drain_s, console=Console())


@app.command()
def status(
    name: Name = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Show a service and its instances as they are now: they are asked themselves."""
    status_command.status(name, output)


@app.command()
def logs(
    instance: Annotated[str | None, typer.Argument(help="Instance, router or up; all if left out.")] = None,
    service: Annotated[str | None, typer.Option("--service", help="Name of the service.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with new lines.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many lines back.")] = 200,
) -> None:
    """Print what the instances and the router log."""
    logs_command.logs(instance, service=service, follow=follow, lines=lines)


@app.command()
def chat(
    name: Name = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="One message instead of a talk.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Bound of each answer.")] = None,
) -> None:
    """Talk to a service; answers stream."""
    chat_command.chat(name, message=message, max_tokens=max_tokens)


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Option("-f", "--file", help="LLMService file to look at, too.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to look at.")] = 8000,
) -> None:
    """Look for what is missing on this machine, and say how to get it."""
    doctor_command.doctor(file, port=port, console=Console())


@app.command()
def version() -> None:
    """Print the versions of the program and of its wire."""
    print(f"triptych {__version__} (wire {WIRE_VERSION})")


def run() -> None:
    """Entry point: every failure is one clear line on stderr and an exit code."""
    try:
        app()
    except Failure as failure:
        sys.stderr.write(f"triptych: {failure}\n")
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    run()
