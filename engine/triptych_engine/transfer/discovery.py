"""The only source of addresses that are dialled: what discovery lists for this service.

An address in a ticket is compared, never followed: a body that came over HTTP cannot make this instance
connect anywhere.
"""

from dataclasses import dataclass

from triptych_contract.clock import Clock
from triptych_contract.errors import HandoverRefused
from triptych_contract.instance import InstanceRecord
from triptych_contract.registry import Registry

CACHE_S = 1.0
"""A link to an instance that left discovery so recently fails by itself; a miss is always looked up anew."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An instance of this service and the address of its KV link."""

    instance_id: str
    host: str
    port: int


class Directory:
    """Which KV links of other instances exist.

    Args:
        registry: Discovery; without it no peer is known.
        service: Only its instances are peers.
        clock: For the age of the cached set.
    """

    def __init__(self, registry: Registry | None, *, service: str, clock: Clock) -> None:
        self._registry = registry
        self._service = service
        self._clock = clock
        self._peers: frozenset[Peer] = frozenset()
        self._read_at_s = float("-inf")

    async def find(self, instance_id: str, host: str, port: int) -> Peer:
        """The peer that a ticket names.

        Raises:
            HandoverRefused: Discovery does not list this very address for this instance of this service.
        """
        peer = Peer(instance_id, host, port)
        fresh = self._clock.now_s() - self._read_at_s < CACHE_S
        if not (fresh and peer in self._peers):
            await self._read()
        if peer not in self._peers:
            raise HandoverRefused("The ticket names an instance or an address that this service does not have.")
        return peer

    async def _read(self) -> None:
        if self._registry is None:
            return
        try:
            records = await self._registry.snapshot()
        except OSError:
            raise HandoverRefused("Discovery cannot be read, so no hand-over can be taken.") from None
        self._peers = frozenset(self._peer(record) for record in records if self._is_ours(record))
        self._read_at_s = self._clock.now_s()

    def _is_ours(self, record: InstanceRecord) -> bool:
        return record.service == self._service and record.dialect == "triptych" and record.kv_port > 0

    @staticmethod
    def _peer(record: InstanceRecord) -> Peer:
        return Peer(record.id, record.host, record.kv_port)
