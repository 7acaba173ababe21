"""The program `triptych-engine`: settings, logs, then the server until it is told to end."""

import asyncio
import os
import sys
from collections.abc import Sequence

from triptych_contract.program.flags import SettingsError
from triptych_contract.program.logs import set_up_logging
from triptych_engine import failpoints
from triptych_engine.server.lifecycle import serve
from triptych_engine.settings import read_settings

EXIT_USAGE = 2


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its status: 0 after a drain, 1 after a failure, 2 for faulty settings."""
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments)
        if settings.enable_failpoints:
            failpoints.arm(os.environ)
        else:
            os.environ.pop(failpoints.VARIABLE, None)
    except SettingsError as error:
        for fault in error.faults:
            print(f"triptych-engine: {fault}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    set_up_logging(settings.log_level)
    sys.exit(asyncio.run(serve(settings)))


if __name__ == "__main__":
    run()
