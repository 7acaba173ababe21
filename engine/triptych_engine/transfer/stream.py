"""Verified bytes on a link: each item is its bytes, then 8 bytes of xxh3-64 over them.

Both ends hash batch by batch between the calls that move the bytes, so hashing overlaps the transfer. The
receiver hashes its own copy, where it lies, after it has arrived.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import xxhash

from triptych_engine.failpoints import failpoint, failpoint_async, is_armed
from triptych_engine.transfer.link import BATCH_BYTES, BATCH_PARTS, Link, LinkBroken, Part

CHECKSUM_BYTES = 8


class ChecksumMismatch(Exception):
    """A copy differs from what was sent."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an item goes.

    Attributes:
        run: Writable bytes that are filled from the link.
        place: Moves the run to where it belongs and returns the bytes as they lie there; None if the run
            lies there already.
    """

    run: memoryview
    place: Callable[[memoryview], memoryview] | None = None


class Sender:
    """Sends items and their checksums in batches.

    Args:
        link: Owned by the caller.
        sent: Called with the bytes of each item that has left.
    """

    def __init__(self, link: Link, *, sent: Callable[[int], None]) -> None:
        self._link = link
        self._sent = sent
        self._batch: list[Part] = []
        self._sizes: list[int] = []
        self._batch_bytes = 0

    async def send(self, items: Iterable[memoryview]) -> None:
        """Send all items; each is taken when its turn comes, so that a copy lives only until it has left."""
        for item in items:
            state = xxhash.xxh3_64()
            for piece in _pieces(item):
                state.update(piece)
                await self._add(piece)
            await self._add(state.intdigest().to_bytes(CHECKSUM_BYTES, "little"))
            self._sizes.append(len(item))
            await self._inject()
        await self._flush()

    async def _add(self, part: Part) -> None:
        if self._batch_bytes + len(part) > BATCH_BYTES or len(self._batch) >= BATCH_PARTS:
            await self._flush()
        self._batch.append(part)
        self._batch_bytes += len(part)

    async def _flush(self) -> None:
        await self._link.send(self._batch)
        self._batch.clear()
        self._batch_bytes = 0
        for size_bytes in self._sizes:
            self._sent(size_bytes)
            await failpoint_async("kv.sent_k_of_n")
        self._sizes.clear()
        await asyncio.sleep(0)

    async def _inject(self) -> None:
        """Faults of the item whose checksum is the last part of the batch, for tests."""
        await failpoint_async("kv.delay")
        if failpoint("kv.corrupt_block"):
            wrong = bytearray(self._batch[-1])
            wrong[0] ^= 1
            self._batch[-1] = bytes(wrong)
        if failpoint("kv.drop_block"):
            self._batch.clear()
        if failpoint("kv.truncate"):
            self._batch.pop()
            await self._flush()
            raise LinkBroken("cut by a failpoint")
        if is_armed("kv.sent_k_of_n"):
            await self._flush()


class Receiver:
    """Receives items in the order in which they are sent, and verifies each.

    Args:
        link: Owned by the caller.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._steps: list[_Piece | _Sum] = []
        self._batch_bytes = 0

    async def receive(self, targets: Iterable[Target]) -> None:
        """Fill all targets and compare the checksum of each with that of its bytes where they lie.

        Raises:
            ChecksumMismatch: A copy differs; nothing of the transfer may be used.
            LinkBroken, TimeoutError, OSError: As `Link.receive_into`.
        """
        for target in targets:
            state = xxhash.xxh3_64()
            for view in _pieces(target.run):
                await self._add(_Piece(view, None if target.place else state))
            await self._add(_Sum(memoryview(bytearray(CHECKSUM_BYTES)), state, target))
        await self._flush()

    async def _add(self, step: "_Piece | _Sum") -> None:
        if self._batch_bytes + len(step.view) > BATCH_BYTES or len(self._steps) >= BATCH_PARTS:
            await self._flush()
        self._steps.append(step)
        self._batch_bytes += len(step.view)

    async def _flush(self) -> None:
        await self._link.receive_into([step.view for step in self._steps])
        for step in self._steps:
            step.verify()
        self._steps.clear()
        self._batch_bytes = 0
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some bytes of an item; hashed here if they lie where they belong."""

    view: memoryview
    state: xxhash.xxh3_64 | None

    def verify(self) -> None:
        if self.state is not None:
            self.state.update(self.view)


@dataclass(frozen=True, slots=True)
class _Sum:
    """The checksum that follows an item."""

    view: memoryview
    state: xxhash.xxh3_64
    target: Target

    def verify(self) -> None:
        if self.target.place is not None:
            self.state.update(self.target.place(self.target.run))
        if self.state.intdigest() != int.from_bytes(self.view, "little"):
            raise ChecksumMismatch


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for first in range(0, len(view), BATCH_BYTES):
        yield view[first : first + BATCH_BYTES]
