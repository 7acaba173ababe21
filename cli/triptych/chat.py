"""`triptych chat`: talk to a service, one question or a conversation."""

import asyncio

from triptych.find import running
from triptych.openai_chat import stream

LONGEST_CONVERSATION = 64
"""Messages that are sent along; older ones are forgotten."""


def chat(name: str | None, *, message: str | None, max_tokens: int | None) -> None:
    """Send one message, or read messages from the terminal until the end of input."""
    _, entry = running(name)
    if message is not None:
        asyncio.run(_say(entry.url, entry.model, [{"role": "user", "content": message}], max_tokens))
        return
    print(f"{entry.model} at {entry.url}; end with Ctrl-D")
    conversation: list[dict[str, str]] = []
    while (line := _read()) is not None:
        if not line.strip():
            continue
        conversation.append({"role": "user", "content": line})
        text = asyncio.run(_say(entry.url, entry.model, conversation[-LONGEST_CONVERSATION:], max_tokens))
        conversation.append({"role": "assistant", "content": text})


def _read() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


async def _say(url: str, model: str, messages: list[dict[str, str]], max_tokens: int | None) -> str:
    """Print the answer while it comes; returns it whole."""
    text = ""
    async for piece in stream(url, model=model, messages=messages, max_tokens=max_tokens):
        print(piece, end="", flush=True)
        text += piece
    print()
    return text
