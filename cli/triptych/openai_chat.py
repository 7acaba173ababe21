"""A small client of the chat API: one answer, or a stream of its pieces."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from triptych.failure import Failure
from triptych_contract.errors import parse_error
from triptych_contract.headers import SERVED_BY

Messages = Sequence[Mapping[str, str]]
CONNECT_S = 5.0
ANSWER_S = 600.0
LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `served_by` maps stages to instance ids, empty where the router does not tell."""

    text: str
    served_by: Mapping[str, str]


def parse_served_by(header: str) -> dict[str, str]:
    """`"prefill=a, decode=b"` as a mapping."""
    pairs = (part.strip().partition("=") for part in header.split(","))
    return {stage: instance for stage, equals, instance in pairs if equals}


async def answer(url: str, *, model: str, messages: Messages, max_tokens: int, temperature: float) -> Answer:
    """Ask and wait for the whole answer.

    Raises:
        Failure: The service does not answer, or answers with an error.
    """
    body = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature}
    try:
        async with _session() as session, session.post(f"{url}/v1/chat/completions", json=body) as response:
            data = await response.read()
            _raise_for(response.status, data)
            served_by = parse_served_by(response.headers.get(SERVED_BY, ""))
    except (aiohttp.ClientError, TimeoutError, OSError):
        raise Failure(f"{url} does not answer; see: triptych status") from None
    try:
        return Answer(str(json.loads(data)["choices"][0]["message"]["content"] or ""), served_by)
    except (ValueError, LookupError, TypeError):
        raise Failure(f"{url} answers something that is no chat completion") from None


async def stream(url: str, *, model: str, messages: Messages, max_tokens: int | None) -> AsyncIterator[str]:
    """The pieces of an answer as they come. Raises `Failure` as `answer` does."""
    body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    try:
        async with _session() as session, session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                _raise_for(response.status, await response.read())
            while line := await response.content.readline():
                piece = _piece(line)
                if piece:
                    yield piece
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        raise Failure(f"{url} does not answer; see: triptych status") from None


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=ANSWER_S, connect=CONNECT_S)
    return aiohttp.ClientSession(timeout=timeout, read_bufsize=LINE_BYTES)


def _raise_for(status: int, data: bytes) -> None:
    if status == 200:
        return
    error = parse_error(data)
    raise Failure(f"the service refuses ({status}): {error.message if error else 'no reason given'}")


def _piece(line: bytes) -> str:
    """The text in one line of an event stream."""
    if not line.startswith(b"data:"):
        return ""
    data = line[5:].strip()
    if data == b"[DONE]":
        return ""
    try:
        event = json.loads(data)
    except ValueError:
        return ""
    if "error" in event:
        raise Failure(f"the answer broke off: {event['error'].get('message', 'no reason given')}")
    choices = event.get("choices") or []
    return str((choices[0].get("delta") or {}).get("content") or "") if choices else ""
