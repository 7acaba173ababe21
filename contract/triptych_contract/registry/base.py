"""The interface of every discovery backend."""

from collections.abc import AsyncIterator
from typing import Protocol

from triptych_contract.instance import InstanceRecord


class Registration(Protocol):
    """A record that stands for as long as its writer lives and has not withdrawn it."""

    async def withdraw(self) -> None:
        """Remove the record; a second call does nothing."""
        ...


class Registry(Protocol):
    """Where the instances of one service are."""

    async def register(self, record: InstanceRecord) -> Registration:
        """Publish a record under its instance id, in place of any older one of that id.

        Raises:
            OSError: The backend cannot be reached or written.
        """
        ...

    async def snapshot(self) -> tuple[InstanceRecord, ...]:
        """All records now, ordered by instance id; corrupt ones and those of dead writers are left out."""
        ...

    def watch(self) -> AsyncIterator[tuple[InstanceRecord, ...]]:
        """The present set at once, then the whole set after each change; never ends by itself."""
        ...
