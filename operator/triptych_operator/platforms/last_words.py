"""What a child said last that may tell why it ended: plain text, or a structured record of an error.

Our programs log one JSON object a line. The last one before a sudden end is most often of a request that went well,
which would only mislead; so of structured lines those below `error` are passed over.
"""

from typing import Any

import msgspec

LONGEST = 400
LONGEST_RECORD_BYTES = 1 << 16
"""A longer line is no record of ours; it is taken as text."""
ERRORS = ("error", "critical")
_UNTOLD = ("time", "level", "event", "at")


class LastWords:
    """Hears each line of one start of a child, and keeps the last that may be a reason."""

    def __init__(self) -> None:
        self.text = ""

    def hear(self, line: bytes) -> None:
        """Take one line, with or without its newline."""
        told = _told(line)
        if told:
            self.text = told[-LONGEST:]


def _told(line: bytes) -> str:
    text = line[-LONGEST_RECORD_BYTES:].decode("utf-8", "replace").strip()
    if not text.startswith("{") or len(line) > LONGEST_RECORD_BYTES:
        return text
    try:
        record: Any = msgspec.json.decode(line)
    except msgspec.MsgspecError:
        return text
    if not isinstance(record, dict) or "event" not in record:
        return text
    return _sentence(record) if record.get("level") in ERRORS else ""


def _sentence(record: dict[str, Any]) -> str:
    """`event (field=value, ...)`, without the fields that say nothing to a person."""
    fields = ", ".join(
        f"{key}={value}" for key, value in record.items() if key not in _UNTOLD and value not in (None, "")
    )
    return f"{record['event']} ({fields})" if fields else str(record["event"])
