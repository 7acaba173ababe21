"""What tests of the router check again and again: the one error shape, and the events of a stream."""

import json
from typing import Any

PROMPT = " ".join(f"word{i}" for i in range(60))


def assert_error(body: dict[str, Any], *, code: str | None = None, param: str | None = None) -> None:
    """The body is one OpenAI error without an address, a path or a library's text."""
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]
    assert error["type"]
    for secret in ("127.0.0.1", "/work", "Traceback", "aiohttp", "Errno"):
        assert secret not in error["message"]
    if code is not None:
        assert error["code"] == code, error
    if param is not None:
        assert error["param"] == param, error


def data_of(stream: bytes) -> list[Any]:
    """The JSON of all events; the stream must be whole events that end with `[DONE]`."""
    assert stream.endswith(b"data: [DONE]\n\n"), stream[-200:]
    events = [event for event in stream.split(b"\n\n") if event]
    assert all(event.startswith(b"data: ") for event in events), events
    return [json.loads(event[6:]) for event in events[:-1]]
