"""Structured logs on stderr: one JSON object a line, never the text of a user.

JSON escapes control characters, so that nothing a client sends can forge a line or drive a terminal.
"""

import json
import logging
import time

_FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """Time, level, event and the event's own fields; of an exception its type and its place."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = _places(record)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up_logging(level: str) -> None:
    """Send all logs to stderr as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_to(logger: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Write one event with its fields."""
    logger.log(level, event, extra={_FIELDS: fields})


def log_exception_to(logger: logging.Logger, event: str, **fields: object) -> None:
    """Write the exception that is being handled by type and place; its message may hold a user's text."""
    logger.error(event, exc_info=True, extra={_FIELDS: fields})


def _places(record: logging.LogRecord) -> list[str]:
    places = []
    traceback = record.exc_info[2] if record.exc_info else None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} {code.co_qualname}")
        traceback = traceback.tb_next
    return places[-8:]
