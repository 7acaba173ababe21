"""The producer's end of the KV link: token, link class, then pulls, renewals and releases under leases.

A link is served by one task, one frame after the other. A lease that ends while its bytes are being sent
takes that task with it: once cancelled, a task reads no byte of the pool any more, so the blocks may be
reused at once, and the consumer sees a short transfer, which it discards.
"""

import asyncio
import hmac
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from triptych_contract import WIRE_VERSION
from triptych_contract.errors import BadRequest, HandoverRefused, TriptychError, Unauthorized
from triptych_contract.handover import (
    Hello,
    LinkClass,
    LinkFrame,
    Pull,
    PullEmbeddings,
    Refused,
    Released,
    Renew,
    Renewed,
    Taken,
    Welcome,
)
from triptych_engine.transfer.counters import Counters
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.holdings import Holdings
from triptych_engine.transfer.leases import KVHolding
from triptych_engine.transfer.link import Link, LinkBroken, widen_buffers
from triptych_engine.transfer.offer import offer_blocks, offer_embeddings
from triptych_engine.transfer.pace import transfer_deadline_s
from triptych_engine.transfer.pool import BlockPool
from triptych_engine.transfer.stream import Sender
from triptych_engine.transfer.tasks import Tasks

MAX_LINKS = 256
HELLO_BYTES = 16 * 1024
"""Bound of the first frame, which anybody can send."""
HELLO_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 60.0
"""Longer than the consumer keeps an idle link, so that the consumer is the one to close it."""
ACCEPT_PAUSE_S = 0.1
"""After a failed accept (no descriptors left), so that the loop does not spin."""

_log = logging.getLogger(__name__)


class LinkServer:
    """Listens on the KV port.

    Args:
        instance_id: Name of this instance.
        service_token: Secret that a consumer must show first.
        link_class: Only consumers of an equal one are served.
        holdings: The leases.
        store: Embeddings.
        pool: Blocks.
        embedding_dtype: Element type of embeddings.
        counters: Of this instance.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        service_token: str,
        link_class: LinkClass,
        holdings: Holdings,
        store: EmbeddingStore,
        pool: BlockPool,
        embedding_dtype: str,
        counters: Counters,
    ) -> None:
        self._instance_id = instance_id
        self._token = service_token.encode()
        self._link_class = link_class
        self._holdings = holdings
        self._store = store
        self._pool = pool
        self._embedding_dtype = embedding_dtype
        self._counters = counters
        self._listener: socket.socket | None = None
        self._acceptor = Tasks(limit=1)
        self._links = Tasks(limit=MAX_LINKS)
        self._readers: dict[asyncio.Task[None], str] = {}

    def start(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses if it is 0.

        Raises:
            OSError: The address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            widen_buffers(listener)
            listener.setblocking(False)
            listener.bind((host, port))
            listener.listen(MAX_LINKS)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._acceptor.start(self._accept(listener), name="kv-link-accept")
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening and end every link."""
        await self._acceptor.close()
        if self._listener is not None:
            self._listener.close()
        await self._links.close()

    def stop_readers(self, lease_id: str) -> None:
        """End every link that is sending under a lease; none of them reads the pool after this returns."""
        own = asyncio.current_task()
        for task, reading in tuple(self._readers.items()):
            if reading == lease_id and task is not own:
                task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:
                _log.warning("a KV link could not be accepted")
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            link = Link(sock)
            if self._links.start(self._serve(link), name="kv-link") is None:
                self._counters.refused += 1
                link.close()

    async def _serve(self, link: Link) -> None:
        with closing(link):
            try:
                if await self._welcome(link):
                    while True:
                        await self._answer(link, await link.receive_frame(timeout_s=IDLE_TIMEOUT_S))
            except (LinkBroken, OSError) as error:
                _log.debug("a KV link ended: %s", type(error).__name__)

    async def _welcome(self, link: Link) -> bool:
        """Check the first frame; False, and the consumer was told why, if the link is refused."""
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await link.receive_frame(limit_bytes=HELLO_BYTES, timeout_s=HELLO_TIMEOUT_S)
        try:
            self._check_hello(hello)
        except TriptychError as refusal:
            await self._refuse(link, refusal)
            return False
        await link.send_frame(Welcome(self._instance_id))
        return True

    def _check_hello(self, hello: LinkFrame) -> None:
        if not isinstance(hello, Hello) or not hmac.compare_digest(hello.token.encode(), self._token):
            raise Unauthorized("A KV link needs the service token.")
        if hello.version != WIRE_VERSION:
            raise HandoverRefused(f"The KV link speaks version {WIRE_VERSION}, the consumer version {hello.version}.")
        check_link_class(producer=self._link_class, consumer=hello.link_class)

    async def _refuse(self, link: Link, refusal: TriptychError) -> None:
        self._counters.refused += 1
        _log.warning("a KV link was refused: %s", refusal.message)
        await link.send_frame(Refused(refusal.code, refusal.message))

    async def _answer(self, link: Link, frame: LinkFrame) -> None:
        try:
            match frame:
                case Pull():
                    await self._send_blocks(link, frame)
                case PullEmbeddings():
                    await self._send_embeddings(link, frame)
                case Renew():
                    self._holdings.renew(frame.lease)
                    await link.send_frame(Renewed(frame.lease, self._holdings.ttl_ms))
                case Taken():
                    self._holdings.release(frame.lease)
                    await link.send_frame(Released(frame.lease))
                case _:
                    raise BadRequest("A producer does not expect this frame.")
        except TriptychError as refusal:
            await self._refuse(link, refusal)

    async def _send_blocks(self, link: Link, pull: Pull) -> None:
        lease = self._holdings.find(pull.lease)
        manifest = offer_blocks(pull, lease, self._pool.layout)
        blocks = lease.holding.blocks if isinstance(lease.holding, KVHolding) else ()
        views = (self._pool.valid(blocks[block.index], block.tokens) for block in manifest.blocks)
        size_bytes = sum(block.size_bytes for block in manifest.blocks)
        with self._reading(lease.id):
            async with asyncio.timeout(transfer_deadline_s(self._holdings.ttl_ms, size_bytes)):
                await link.send_frame(manifest)
                await Sender(link, sent=self._block_sent).send(views)

    async def _send_embeddings(self, link: Link, pull: PullEmbeddings) -> None:
        lease = self._holdings.find(pull.lease)
        entries = [self._store.get(bytes.fromhex(digest)) if _is_hex(digest) else None for digest in pull.digests]
        manifest = offer_embeddings(pull, lease, entries, self._embedding_dtype)
        views = [memoryview(entry.data) for entry in entries if entry is not None]
        with self._reading(lease.id):
            async with asyncio.timeout(transfer_deadline_s(self._holdings.ttl_ms, sum(map(len, views)))):
                await link.send_frame(manifest)
                await Sender(link, sent=self._embedding_sent).send(views)

    @contextmanager
    def _reading(self, lease_id: str) -> Iterator[None]:
        """While the task of this link reads what a lease holds."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a link is served by a task")
        self._readers[task] = lease_id
        try:
            yield
        finally:
            del self._readers[task]

    def _block_sent(self, size_bytes: int) -> None:
        self._counters.blocks_sent += 1
        self._counters.bytes_sent += size_bytes

    def _embedding_sent(self, size_bytes: int) -> None:
        self._counters.bytes_sent += size_bytes


def check_link_class(*, producer: LinkClass, consumer: LinkClass) -> None:
    """Raise `HandoverRefused`, naming what differs on both sides, unless the link classes are equal."""
    names = ("connector", "layout", "kv_dtype", "fingerprint")
    unequal = [name for name in names if getattr(producer, name) != getattr(consumer, name)]
    if unequal:
        pairs = "; ".join(f"{name} {getattr(producer, name)} here, {getattr(consumer, name)} there" for name in unequal)
        raise HandoverRefused(f"The two instances cannot be paired: {pairs}.")


def _is_hex(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
