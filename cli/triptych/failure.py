"""How a command fails: one clear line with the next step, and an exit code that scripts can rely on."""

FAILED = 1
USAGE = 2
NOT_RUNNING = 3


class Failure(Exception):
    """Ends the command.

    Args:
        message: What is wrong and what to do.
        code: 1 it failed, 2 bad file or command line, 3 no such service runs.
    """

    def __init__(self, message: str, *, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
