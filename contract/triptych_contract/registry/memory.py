"""Discovery inside one process, for tests and the simulator."""

import asyncio
from collections.abc import AsyncIterator

from triptych_contract.instance import InstanceRecord


class MemoryRegistry:
    """A registry that lives in this object."""

    def __init__(self) -> None:
        self._registrations: dict[str, _MemoryRegistration] = {}
        self._changed = asyncio.Condition()

    async def register(self, record: InstanceRecord) -> "_MemoryRegistration":
        """Publish a record in place of any older one of that id."""
        record.check()
        registration = _MemoryRegistration(self, record)
        async with self._changed:
            self._registrations[record.id] = registration
            self._changed.notify_all()
        return registration

    async def snapshot(self) -> tuple[InstanceRecord, ...]:
        """All records, ordered by instance id."""
        return tuple(self._registrations[key].record for key in sorted(self._registrations))

    async def watch(self) -> AsyncIterator[tuple[InstanceRecord, ...]]:
        """The present set, then the whole set after each change."""
        while True:
            seen = await self.snapshot()
            yield seen
            async with self._changed:
                while await self.snapshot() == seen:
                    await self._changed.wait()

    async def remove(self, registration: "_MemoryRegistration") -> None:
        """Take this very registration away; a newer one of the same id stays."""
        async with self._changed:
            if self._registrations.get(registration.record.id) is registration:
                del self._registrations[registration.record.id]
                self._changed.notify_all()


class _MemoryRegistration:
    def __init__(self, registry: MemoryRegistry, record: InstanceRecord) -> None:
        self._registry = registry
        self.record = record

    async def withdraw(self) -> None:
        await self._registry.remove(self)
