"""The program `triptych-router`: settings, logs, then the server until it is told to end."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from triptych_contract.program.flags import SettingsError
from triptych_contract.program.logs import set_up_logging
from triptych_router.log import log
from triptych_router.server import run as serve
from triptych_router.settings import read_settings

EXIT_FAILED, EXIT_USAGE = 1, 2


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its status: 0 after a drain, 1 after a failure, 2 for faulty settings."""
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        for fault in error.faults:
            print(f"triptych-router: {fault}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    set_up_logging(settings.log_level)
    try:
        asyncio.run(serve(settings, _announce))
    except OSError as error:
        log(logging.ERROR, "router cannot serve", cause=error.strerror or type(error).__name__)
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def _announce(port: int) -> None:
    print(json.dumps({"event": "listening", "http_port": port}), flush=True)


if __name__ == "__main__":
    run()
