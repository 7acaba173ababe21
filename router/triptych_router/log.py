"""The router's log lines."""

import logging

from triptych_contract.program.logs import log_exception_to, log_to

LOGGER = logging.getLogger("triptych.router")


def log(level: int, event: str, **fields: object) -> None:
    """Write one event with its fields."""
    log_to(LOGGER, level, event, **fields)


def log_exception(event: str, **fields: object) -> None:
    """Write the exception that is being handled by type and place; its message may hold a user's text."""
    log_exception_to(LOGGER, event, **fields)
