"""The terminal of a program that goes on when nobody reads it any more."""

import os
import sys

from rich.console import Console


class Terminal(Console):
    """A console whose reader may leave: `triptych up | head` keeps serving, and ends as it is told to."""

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
