"""The client's side of a request, as the flow sees it; the HTTP shell implements it."""

from collections.abc import Mapping
from typing import Protocol


class ClientGone(Exception):
    """The client left, or reads so slowly that its bounded buffer stayed full."""


class Reply(Protocol):
    """Where the answer goes."""

    @property
    def started(self) -> bool:
        """True once a byte may have left."""
        ...

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """The whole answer at once.

        Raises:
            ClientGone: It cannot be written.
        """
        ...

    async def events(self, data: bytes, headers: Mapping[str, str]) -> None:
        """Whole events of a stream; the headers count with the first ones only.

        Raises:
            ClientGone: They cannot be written.
        """
        ...

    async def end(self) -> None:
        """End a stream; raises `ClientGone`."""
        ...
