"""Follow one instance's state stream for as long as it lives: `GET /instance/events`, NDJSON.

A stream that breaks is opened again at once; if that is refused the life is over, and it is tried again with
growing pauses, since discovery may still list it. A silent stream is judged by its beats, not by its socket.
"""

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from triptych_contract.clock import Clock
from triptych_contract.errors import BadRequest
from triptych_contract.instance import BEAT_MS, DEAD_BEATS, InstanceRecord, LoadSample, StateEvent
from triptych_router.cluster.health import judge
from triptych_router.cluster.lives import Life
from triptych_router.cluster.view import Health, InstanceView, Stream, StreamGap, advance, base_url
from triptych_router.log import log

MAX_LINE_BYTES = 4 * 1024 * 1024
CONNECT_S = 2.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
SILENCE_S = 4 * DEAD_BEATS * BEAT_MS / 1000
"""After so long without a line the connection is opened anew; it may have died without a sign."""
_DECODER: msgspec.json.Decoder[StateEvent] = msgspec.json.Decoder(StateEvent)


class Followed:
    """What is known of one life of one instance; owned by `ClusterWatch`.

    `heard` means that it was read or found unreachable once; `spoke`, that the present connection brought an event.
    """

    def __init__(self, record: InstanceRecord, *, now_s: float) -> None:
        self.record = record
        self.stream = Stream(beat_s=now_s)
        self.reachable = True
        self.heard = False
        self.spoke = False
        self.listed = True
        self.life = Life()

    def view(self, now_s: float) -> InstanceView | None:
        """What decisions see of it; None before it was heard."""
        if self.stream.state is None:
            return None
        return InstanceView(self.record, self.stream.state, self._health(now_s), self.listed)

    def excuse(self, lag_s: float) -> None:
        """Do not count a time in which this process itself did not run."""
        self.stream = Stream(self.stream.state, self.stream.seq, self.stream.beat_s + lag_s)

    def check_life(self, now_s: float) -> None:
        """End the life once the beats say so; a later beat begins a new one."""
        if self.stream.state is not None and self._health(now_s) is Health.DEAD:
            self.life.end()

    def _health(self, now_s: float) -> Health:
        load = self.stream.state.load if self.stream.state is not None else LoadSample()
        return judge(beat_age_s=now_s - self.stream.beat_s, load=load, reachable=self.reachable)


async def follow(
    followed: Followed, session: aiohttp.ClientSession, *, token: str, clock: Clock, changed: Callable[[], None]
) -> None:
    """Read the stream until this task is cancelled, or until an instance that is no longer listed is gone."""
    pause_s = 0.0
    while True:
        followed.spoke = False
        try:
            await _read(followed, session, token=token, clock=clock, changed=changed)
        except (aiohttp.ClientError, OSError, TimeoutError, BadRequest, StreamGap, ValueError) as error:
            pause_s = 0.0 if followed.spoke else pause_s
            if followed.spoke or not followed.heard:
                log(logging.WARNING, "state stream lost", instance=followed.record.id, cause=type(error).__name__)
            if isinstance(error, aiohttp.ClientConnectorError) or (not followed.spoke and pause_s > 0.0):
                _lost(followed, changed)
        if not followed.listed and not followed.reachable:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(MAX_PAUSE_S, max(FIRST_PAUSE_S, pause_s * 2))


async def _read(
    followed: Followed, session: aiohttp.ClientSession, *, token: str, clock: Clock, changed: Callable[[], None]
) -> None:
    """Read one connection's events; always ends with an error."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    url = f"{base_url(followed.record)}/instance/events"
    async with session.get(
        url, headers=headers, timeout=timeout, allow_redirects=False, read_bufsize=MAX_LINE_BYTES
    ) as answer:
        if answer.status != 200:
            raise BadRequest(f"The state stream answered {answer.status}.")
        stream = Stream()
        async for line in answer.content:
            stream = advance(stream, _decode(line), followed.record, clock.now_s())
            _heard(followed, stream)
            changed()
    raise aiohttp.ServerDisconnectedError


def _decode(line: bytes) -> StateEvent:
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise BadRequest("The state stream holds a line that cannot be read.") from None


def _heard(followed: Followed, stream: Stream) -> None:
    followed.stream = stream
    if followed.life.over:
        followed.life = Life()
    followed.reachable = followed.heard = followed.spoke = True


def _lost(followed: Followed, changed: Callable[[], None]) -> None:
    followed.reachable = False
    followed.heard = True
    followed.life.end()
    changed()
