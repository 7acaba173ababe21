"""The last leg's answer to the client: a body as received, or whole events without their ledger lines."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import aiohttp

from triptych_contract.errors import TriptychError, UpstreamFailed
from triptych_contract.ledger import split_event
from triptych_contract.roles import Stage
from triptych_router.api import sse
from triptych_router.dispatch.attempt import read_whole
from triptych_router.dispatch.ledger import Ledger
from triptych_router.dispatch.reply import Reply
from triptych_router.dispatch.retry import Cause, LegFailed

_EMPTY_BYTES = 4
"""Line ends of an event that holds nothing."""


class Whole(NamedTuple):
    """An answer that is not streamed, as received."""

    body: bytes
    content_type: str


async def read_answer(answer: aiohttp.ClientResponse) -> Whole:
    """Read an answer that is not streamed; its instance is not needed any more when the client gets it."""
    return Whole(await read_whole(answer, Stage.DECODE), answer.content_type)


async def relay_events(
    answer: aiohttp.ClientResponse,
    reply: Reply,
    ledger: Ledger,
    *,
    headers: Mapping[str, str],
    first: Callable[[], None],
) -> TriptychError | None:
    """Forward a stream; the events of one read go out in one write.

    Returns:
        The error that an event carried, None for a stream that went well.

    Raises:
        LegFailed: It ended without its last event, or began with an error.
        ClientGone: The client left.
    """
    splitter = sse.EventSplitter()
    failed: TriptychError | None = None
    done = False
    try:
        async for chunk in answer.content.iter_any():
            lines, events = _cut(splitter.feed(chunk))
            failed = failed or sse.first_error(events)
            if failed is not None and not reply.started:
                raise LegFailed(Stage.DECODE, Cause.REFUSED, failed, status=failed.status)
            if events:
                first()
                await reply.events(b"".join(events), headers)
            for line in lines:
                ledger.record(line)
            done = done or any(map(sse.is_done, events))
    except UpstreamFailed as error:
        raise LegFailed(Stage.DECODE, Cause.REFUSED, error, delivered=reply.started) from None
    if not done and failed is None:
        raise LegFailed(Stage.DECODE, Cause.DIED, delivered=reply.started)
    if not done:
        await reply.events(sse.DONE, headers)
    await reply.end()
    return failed


def _cut(events: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Ledger lines, and what the client gets; an event that holds nothing else is left out."""
    lines: list[bytes] = []
    rest: list[bytes] = []
    for event in events:
        line, shown = split_event(event)
        if line is not None:
            lines.append(line)
        if len(shown) > _EMPTY_BYTES or shown.strip(b"\r\n"):
            rest.append(shown)
    return lines, rest
