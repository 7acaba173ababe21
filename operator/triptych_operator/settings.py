"""Settings of the operator program: one frozen value, read once."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych_operator.state_dir import default_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the operator is told at start; see `--help`."""

    platform: str
    file: Path
    state_dir: Path | None
    port: int
    model: Path | None
    sim: bool
    log_level: str
    exit_with_stdin: bool

    def state_root(self) -> Path:
        """Folder of all services' state directories."""
        return default_root(os.environ)


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read the command line; prints help or a usage error and exits as `argparse` does."""
    flags = _parser().parse_args(arguments)
    return Settings(
        platform=flags.platform,
        file=flags.file,
        state_dir=flags.state_dir,
        port=flags.port,
        model=flags.model,
        sim=flags.sim,
        log_level=flags.log_level,
        exit_with_stdin=flags.exit_with_stdin,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triptych-operator",
        description="Run the instances and the router of an LLMService file, and keep them running.",
        allow_abbrev=False,
    )
    parser.add_argument("--platform", choices=["local"], default="local", help="where instances run")
    parser.add_argument("-f", "--file", type=Path, required=True, help="LLMService file")
    parser.add_argument("--state-dir", type=Path, help="directory of this service (default: by its name)")
    parser.add_argument("--port", type=_port, default=8000, help="port of the router; 0 takes a free one (8000)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sim", action="store_true", help="run the simulated engine, whatever the file says")
    kind.add_argument("--model", type=Path, help="folder of the weights, instead of the file's model.source")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when stdin is closed")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError("write a port from 0 to 65535")
    return port
