"""The consumer's end of the KV link: pull, verify the own copy, renew, give back.

A transfer is used whole or not at all. Every way in which it can go wrong ends in one exception that names a
reason; the caller recomputes.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from triptych_contract.handover import (
    EmbeddingManifest,
    LinkFrame,
    Manifest,
    Pull,
    PullEmbeddings,
    Refused,
    Released,
    Renew,
    Renewed,
    Taken,
    WantedBlock,
)
from triptych_engine.failpoints import FailpointError, failpoint_async
from triptych_engine.messages import PullBlock
from triptych_engine.transfer.counters import Counters, Failure
from triptych_engine.transfer.dial import Dialler, TransferFailed
from triptych_engine.transfer.discovery import Peer
from triptych_engine.transfer.link import Link, LinkBroken
from triptych_engine.transfer.offer import is_answer, is_embedding_answer
from triptych_engine.transfer.pool import BlockPool
from triptych_engine.transfer.stream import ChecksumMismatch, Receiver, Target

MAX_EMBEDDING_BYTES = 64 * 1024 * 1024
"""Bound of all embeddings of one pull, which are received into fresh memory."""


T = TypeVar("T")


class LinkClient:
    """Calls on the KV links of peers.

    Args:
        dialler: Of the links.
        pool: Where blocks go.
        embedding_dtype: Element type of this instance's embeddings.
        embedding_bytes: Bytes of one row of them.
        counters: Of this instance.
    """

    def __init__(
        self, dialler: Dialler, pool: BlockPool, *, embedding_dtype: str, embedding_bytes: int, counters: Counters
    ) -> None:
        self._dialler = dialler
        self._pool = pool
        self._embedding_dtype = embedding_dtype
        self._embedding_bytes = embedding_bytes
        self._counters = counters

    async def pull(self, peer: Peer, lease: str, blocks: Sequence[PullBlock], *, deadline_s: float) -> None:
        """Fill blocks of the own pool. When this ends, however it ends, nothing writes to them any more.

        Args:
            peer: The producer.
            lease: Its lease.
            blocks: Blocks of the own chain in chain order, allocated here.
            deadline_s: Seconds for all of it.

        Raises:
            TransferFailed: Use none of the blocks.
        """
        wanted = tuple(WantedBlock(block.index, block.identity, block.tokens) for block in blocks)
        pull = Pull(lease, wanted)
        async with self._transfer(peer, deadline_s) as link:
            await failpoint_async("kv.before_pull")
            await link.send_frame(pull)
            manifest = _expect(await link.receive_frame(), Manifest)
            if not is_answer(manifest, pull, self._pool.layout):
                raise TransferFailed(Failure.MANIFEST, "The producer announces other blocks than were asked for.")
            await Receiver(link).receive(self._target(block) for block in blocks)
            await failpoint_async("kv.after_pull")
        self._counters.blocks_received += len(blocks)
        self._counters.bytes_received += sum(self._pool.layout.valid_bytes(block.tokens) for block in blocks)

    async def pull_embeddings(
        self, peer: Peer, lease: str, digests: Sequence[bytes], *, deadline_s: float
    ) -> dict[bytes, bytes]:
        """The raw rows of embeddings by digest.

        Raises:
            TransferFailed: None of them could be had.
        """
        pull = PullEmbeddings(lease, tuple(digest.hex() for digest in digests))
        async with self._transfer(peer, deadline_s) as link:
            await link.send_frame(pull)
            manifest = _expect(await link.receive_frame(), EmbeddingManifest)
            sound = is_embedding_answer(manifest, pull, dtype=self._embedding_dtype, row_bytes=self._embedding_bytes)
            size_bytes = sum(head.size_bytes for head in manifest.items)
            if not sound or size_bytes > MAX_EMBEDDING_BYTES:
                raise TransferFailed(Failure.MANIFEST, "The producer announces other embeddings than were asked for.")
            rows = [bytearray(head.size_bytes) for head in manifest.items]
            await Receiver(link).receive(Target(memoryview(data)) for data in rows)
        self._counters.embeddings_received += len(rows)
        self._counters.bytes_received += size_bytes
        return {digest: bytes(data) for digest, data in zip(digests, rows, strict=True)}

    async def renew(self, peer: Peer, lease: str, *, deadline_s: float) -> None:
        """Keep a lease alive.

        Raises:
            TransferFailed: With `Failure.REFUSED` if the lease is over.
        """
        async with self._transfer(peer, deadline_s) as link:
            await link.send_frame(Renew(lease))
            _expect(await link.receive_frame(), Renewed)

    async def give_back(self, peer: Peer, lease: str, *, deadline_s: float) -> None:
        """Tell the producer that nobody here wants the lease any more.

        Raises:
            TransferFailed: The producer could not be told; the lease ends by its time.
        """
        async with self._transfer(peer, deadline_s) as link:
            await link.send_frame(Taken(lease))
            _expect(await link.receive_frame(), Released)

    @asynccontextmanager
    async def _transfer(self, peer: Peer, deadline_s: float) -> AsyncIterator[Link]:
        """A link for one exchange, with every failure translated."""
        try:
            async with asyncio.timeout(deadline_s), self._dialler.link(peer) as link:
                yield link
        except TimeoutError:
            raise TransferFailed(Failure.LATE, "The producer did not send in time.") from None
        except ChecksumMismatch:
            raise TransferFailed(Failure.CHECKSUM, "The copy differs from what was sent.") from None
        except (LinkBroken, OSError, FailpointError):
            raise TransferFailed(Failure.SHORT, "The producer's KV link broke.") from None

    def _target(self, block: PullBlock) -> Target:
        if block.tokens == self._pool.layout.block_tokens:
            return Target(self._pool.whole(block.block))

        def place(run: memoryview) -> memoryview:
            self._pool.scatter(block.block, block.tokens, run)
            return self._pool.valid(block.block, block.tokens)

        return Target(memoryview(bytearray(self._pool.layout.valid_bytes(block.tokens))), place)


def _expect(frame: LinkFrame, kind: type[T]) -> T:
    """The frame if it is of the kind that answers."""
    if isinstance(frame, Refused):
        raise TransferFailed(Failure.REFUSED, frame.message)
    if not isinstance(frame, kind):
        raise TransferFailed(Failure.MANIFEST, "The producer answers with another frame than expected.")
    return frame
