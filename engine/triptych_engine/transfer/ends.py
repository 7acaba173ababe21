"""Both ends of an instance's hand-overs, as they exist from the core's `Ready` until the stop."""

from dataclasses import dataclass

from triptych_contract.clock import Clock
from triptych_contract.handover import Hello, LinkClass
from triptych_engine.messages import Ready
from triptych_engine.transfer.counters import Counters
from triptych_engine.transfer.dial import Dialler
from triptych_engine.transfer.embeddings import EmbeddingStore
from triptych_engine.transfer.holdings import Holdings
from triptych_engine.transfer.link_client import LinkClient
from triptych_engine.transfer.link_server import LinkServer
from triptych_engine.transfer.pool import BlockPool
from triptych_engine.transfer.renewals import Renewals

CONNECTOR = "tcp"


@dataclass(frozen=True, slots=True)
class Ends:
    """The producer's end (`server`), the consumer's end (`client`, `dialler`, `renewals`), and what they share."""

    link_class: LinkClass
    pool: BlockPool
    server: LinkServer
    dialler: Dialler
    client: LinkClient
    renewals: Renewals
    embedding_bytes: int


def make_ends(
    *,
    instance_id: str,
    service_token: str,
    clock: Clock,
    ready: Ready,
    pool: memoryview,
    holdings: Holdings,
    store: EmbeddingStore,
    counters: Counters,
) -> Ends:
    """Both ends over a mapped pool; nothing listens or dials yet."""
    link_class = LinkClass(CONNECTOR, ready.layout.describe(), ready.kv_dtype, ready.fingerprint)
    blocks = BlockPool(ready.layout, pool)
    server = LinkServer(
        instance_id=instance_id,
        service_token=service_token,
        link_class=link_class,
        holdings=holdings,
        store=store,
        pool=blocks,
        embedding_dtype=ready.embedding_dtype,
        counters=counters,
    )
    dialler = Dialler(Hello(service_token, instance_id, link_class), clock=clock)
    client = LinkClient(
        dialler,
        blocks,
        embedding_dtype=ready.embedding_dtype,
        embedding_bytes=ready.embedding_bytes,
        counters=counters,
    )
    return Ends(
        link_class=link_class,
        pool=blocks,
        server=server,
        dialler=dialler,
        client=client,
        renewals=Renewals(client.renew),
        embedding_bytes=ready.embedding_bytes,
    )
