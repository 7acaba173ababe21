"""Discovery inside one process, for tests and the simulator."""

import asyncio
from collections.abc import AsyncIterator

from triptych_contract.instance import InstanceRecord


class MemoryRegistry:
    """A registry that lives in this object."""

    def __init__(self) -> None:
        self._records: dict[str, InstanceRecord] = {}
        self._changed = asyncio.Condition()

    async def register(self, record: InstanceRecord) -> "_MemoryRegistration":
        """Publish a record in place of any older one of that id."""
        record.check()
        async with self._changed:
            self._records[record.id] = record
            self._changed.notify_all()
        return _MemoryRegistration(self, record)

    async def snapshot(self) -> tuple[InstanceRecord, ...]:
        """All records, ordered by instance id."""
        return tuple(self._records[key] for key in sorted(self._records))

    async def watch(self) -> AsyncIterator[tuple[InstanceRecord, ...]]:
        """The present set, then the whole set after each change."""
        while True:
            seen = await self.snapshot()
            yield seen
            async with self._changed:
                while await self.snapshot() == seen:
                    await self._changed.wait()

    async def remove(self, record: InstanceRecord) -> None:
        """Take this very record away; a newer one of the same id stays."""
        async with self._changed:
            if self._records.get(record.id) == record:
                del self._records[record.id]
                self._changed.notify_all()


class _MemoryRegistration:
    def __init__(self, registry: MemoryRegistry, record: InstanceRecord) -> None:
        self._registry = registry
        self._record = record

    async def withdraw(self) -> None:
        await self._registry.remove(self._record)
