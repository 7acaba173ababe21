"""One call to one engine: every way in which it can end without an answer becomes a `LegFailed`.

The end of the instance's life interrupts whatever the attempt waits for, so a stopped process that keeps its
connections holds nobody. Leaving the attempt early closes its connection, by which the engine cancels.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from triptych_contract import headers as names
from triptych_contract.errors import UpstreamFailed, parse_error
from triptych_contract.roles import Stage
from triptych_router.cluster.lives import Life
from triptych_router.dispatch.retry import Cause, LegFailed

T = TypeVar("T")
CONNECT_S = 2.0
MAX_REFUSAL_BYTES = 65536
LARGE_BODY_BYTES = 512 * 1024
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Of an answer that is not streamed; sixteen choices with log probabilities stay far below."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)


async def attempt(
    session: aiohttp.ClientSession,
    life: Life,
    use: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    *,
    stage: Stage,
    url: str,
    body: bytes,
    headers: dict[str, str],
) -> T:
    """Send a leg, and give its answer with status 200 to `use`, whose result is the attempt's.

    Raises:
        LegFailed: Not reached, refused, lost, or answered for another attempt; also while the answer is used.
    """
    loop = asyncio.get_running_loop()
    detach = _nothing
    try:
        async with asyncio.timeout(None) as scope:
            detach = life.attach(lambda: scope.reschedule(loop.time()))
            async with session.post(
                url, data=payload(body), headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as answer:
                await _check(answer, stage, headers)
                return await use(answer)
    except TimeoutError as error:
        if scope.expired():
            raise LegFailed(stage, Cause.GONE) from None
        if isinstance(error, aiohttp.ClientError):
            raise LegFailed(stage, Cause.CONNECT) from None
        raise
    except aiohttp.ClientConnectorError:
        raise LegFailed(stage, Cause.CONNECT) from None
    except (aiohttp.ClientError, ConnectionError):
        raise LegFailed(stage, Cause.DIED) from None
    finally:
        detach()


def _nothing() -> None:
    """What an attempt takes away that was never attached."""


def payload(body: bytes) -> bytes | io.BytesIO:
    """The body as aiohttp wants it: a large one is written piece by piece, so that other streams go on."""
    return io.BytesIO(body) if len(body) > LARGE_BODY_BYTES else body


async def read_whole(answer: aiohttp.ClientResponse, stage: Stage, limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """The body of an answer.

    Raises:
        LegFailed: It is larger than the limit.
    """
    parts: list[bytes] = []
    size_bytes = 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise LegFailed(stage, Cause.REFUSED, UpstreamFailed("The instance's answer is too large."))
    return b"".join(parts)


async def _check(answer: aiohttp.ClientResponse, stage: Stage, sent: dict[str, str]) -> None:
    echoed = answer.headers.get(names.ATTEMPT)
    if echoed is not None and echoed != sent[names.ATTEMPT]:
        raise LegFailed(stage, Cause.STALE)
    if answer.status == 200:
        return
    raw = await read_whole(answer, stage, MAX_REFUSAL_BYTES)
    error = parse_error(raw)
    if error is None:
        raise LegFailed(stage, Cause.DIED if answer.status >= 500 else Cause.REFUSED)
    raise LegFailed(stage, Cause.REFUSED, error, status=answer.status, raw=raw)
