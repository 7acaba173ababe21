"""Links from this instance to others: dialled, greeted, and kept for a while.

The last link put back is the first one taken again, so that those not needed grow old and are closed.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from triptych_contract.clock import Clock
from triptych_contract.handover import Hello, Refused, Welcome
from triptych_engine.transfer.counters import Failure
from triptych_engine.transfer.discovery import Peer
from triptych_engine.transfer.link import Link, LinkBroken, widen_buffers

MAX_IDLE_LINKS = 4
"""Kept for one peer."""
MAX_IDLE_S = 20.0
"""Shorter than the producer waits for the next frame."""
CONNECT_TIMEOUT_S = 3.0


class TransferFailed(Exception):
    """A transfer or a call on the KV link did not succeed.

    Args:
        reason: For the counter.
        message: One sentence, without addresses.
    """

    def __init__(self, reason: Failure, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Dialler:
    """Links to peers.

    Args:
        hello: First frame of every link.
        clock: For the age of idle links.
    """

    def __init__(self, hello: Hello, *, clock: Clock) -> None:
        self._hello = hello
        self._clock = clock
        self._idle: dict[Peer, list[tuple[float, Link]]] = {}

    @asynccontextmanager
    async def link(self, peer: Peer) -> AsyncIterator[Link]:
        """A greeted link, owned by the caller inside; kept afterwards if nothing was raised.

        Raises:
            TransferFailed: The peer cannot be reached, or refuses.
        """
        link = self._reuse(peer) or await self._dial(peer)
        try:
            yield link
        except BaseException:
            link.close()
            raise
        self._keep(peer, link)

    def close(self) -> None:
        """Close all idle links."""
        for links in self._idle.values():
            for _, link in links:
                link.close()
        self._idle.clear()

    def _reuse(self, peer: Peer) -> Link | None:
        self._close_old()
        links = self._idle.get(peer, [])
        while links:
            _, link = links.pop()
            if link.is_quiet():
                return link
            link.close()
        return None

    def _keep(self, peer: Peer, link: Link) -> None:
        links = self._idle.setdefault(peer, [])
        if len(links) < MAX_IDLE_LINKS:
            links.append((self._clock.now_s(), link))
        else:
            link.close()

    def _close_old(self) -> None:
        """Close what has been idle too long, at any peer, so that vanished peers leave nothing behind."""
        oldest_s = self._clock.now_s() - MAX_IDLE_S
        for peer, links in tuple(self._idle.items()):
            for since_s, link in links:
                if since_s < oldest_s:
                    link.close()
            links[:] = [(since_s, link) for since_s, link in links if since_s >= oldest_s]
            if not links:
                del self._idle[peer]

    async def _dial(self, peer: Peer) -> Link:
        try:
            link = await _connect(peer)
        except OSError:
            raise TransferFailed(Failure.UNREACHABLE, "The producer's KV link cannot be reached.") from None
        try:
            await self._greet(link, peer)
        except BaseException:
            link.close()
            raise
        return link

    async def _greet(self, link: Link, peer: Peer) -> None:
        try:
            await link.send_frame(self._hello)
            answer = await link.receive_frame(timeout_s=CONNECT_TIMEOUT_S)
        except (LinkBroken, OSError):
            raise TransferFailed(Failure.UNREACHABLE, "The producer's KV link does not answer.") from None
        if isinstance(answer, Refused):
            raise TransferFailed(Failure.REFUSED, answer.message)
        if not isinstance(answer, Welcome) or answer.instance_id != peer.instance_id:
            raise TransferFailed(Failure.REFUSED, "Another instance answers at the producer's KV link.")


async def _connect(peer: Peer) -> Link:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in peer.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        widen_buffers(sock)
        sock.setblocking(False)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.sock_connect(sock, (peer.host, peer.port))
    except BaseException:
        sock.close()
        raise
    return Link(sock)
