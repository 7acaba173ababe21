"""Tickets, leases and the KV link: how a request's state passes from one stage to the next.

One object is spliced into a leg's body by the router. Under `kv_transfer_params`:

    {"do_remote_decode": true}                          prefill leg: compute, keep the blocks, answer a `Ticket`
    {"do_remote_decode": true, "embeddings": {...}}     the same, taking the image embeddings that a ticket names
    {"do_remote_decode": true, "lease": "<id>"}         the same, keeping the blocks under an id that the caller chose
    a `Ticket`                                          decode leg: pull the blocks, sample, stream

and under `triptych`:

    {"encode": true}                                    encode leg: embed the media parts, answer an `EmbeddingTicket`
    {"encode": true, "lease": "<id>"}                   the same, under an id that the caller chose
    {"embeddings": {...}}                               a leg that does prefill and decode, with remote embeddings

An answer carries its ticket as a top-level member of the same name. Optional members may be null, because
proxies of other projects write them so.

A caller that chooses the lease's id can give the lease back without having read the answer; the id is new for
each attempt, since an instance refuses one that is in use or was given back.
"""

import re
from typing import Any, Literal

import msgspec
import xxhash

from triptych_contract import WIRE_VERSION
from triptych_contract.codec import decode_json
from triptych_contract.errors import BadRequest, Forbidden
from triptych_contract.ids import is_host, is_id, is_name

LEASE_TTL_MS = 30_000
"""Default life of a lease without a renewal; holders renew every sixth of it."""
MAX_TTL_MS = 600_000
MAX_DIGESTS = 64
"""Images of one request."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
MEMBERS = ("kv_transfer_params", "triptych")
"""Body members that only a caller with the service token may send."""


class LinkClass(msgspec.Struct, frozen=True):
    """Only instances of an equal link class are paired.

    Attributes:
        connector: Transport, `tcp`.
        layout: Segments a block, tokens a block and bytes a token of each segment, as text.
        kv_dtype: Element type of KV.
        fingerprint: Of the model's weights and configuration.
    """

    connector: str
    layout: str
    kv_dtype: str
    fingerprint: str

    def digest(self) -> str:
        """16 hex digits that two instances compare."""
        return xxhash.xxh3_64_hexdigest(msgspec.msgpack.encode(self))


class Ticket(msgspec.Struct, frozen=True):
    """The prefill leg's small answer; the decode leg's permission to pull.

    Attributes:
        remote_engine_id: Instance that holds the blocks.
        remote_request_id: Request id at that instance.
        remote_host: Where its KV link listens; dialled only if discovery lists the same.
        remote_port: Port of the KV link.
        remote_num_tokens: Prompt tokens that are computed.
        remote_blocks_expiry_time: Unix seconds, for peers that look at it; `ttl_ms` rules.
        tp_size: Tensor-parallel ranks of the producer.
        version: Wire version.
        lease: 128-bit id of the lease.
        ttl_ms: Life of the lease without renewal.
        fingerprint: Digest of the producer's link class.
        remote_num_cached_tokens: Prompt tokens that the producer had in its prefix cache; what `usage` tells.
    """

    remote_engine_id: str
    remote_request_id: str
    remote_host: str
    remote_port: int
    remote_num_tokens: int
    remote_blocks_expiry_time: float
    lease: str
    ttl_ms: int
    fingerprint: str
    tp_size: int = 1
    remote_num_cached_tokens: int = 0
    version: int = WIRE_VERSION
    do_remote_prefill: bool = True
    do_remote_decode: bool = False

    def check(self) -> None:
        """Raise `BadRequest` if a member is out of bounds."""
        if not (is_id(self.lease) and is_name(self.remote_engine_id) and is_host(self.remote_host)):
            raise BadRequest("The ticket is malformed.", param="kv_transfer_params")
        if not (0 < self.ttl_ms <= MAX_TTL_MS and 0 < self.remote_port < 65536 and self.remote_num_tokens > 0):
            raise BadRequest("The ticket is out of bounds.", param="kv_transfer_params")


class EmbeddingTicket(msgspec.Struct, frozen=True):
    """Names the embeddings that an encode instance holds under a lease, by content digest (hex)."""

    remote_engine_id: str
    remote_host: str
    remote_port: int
    lease: str
    ttl_ms: int
    digests: tuple[str, ...]
    version: int = WIRE_VERSION

    def check(self) -> None:
        """Raise `BadRequest` if a member is out of bounds."""
        sound = is_id(self.lease) and is_name(self.remote_engine_id) and is_host(self.remote_host)
        listed = 0 < len(self.digests) <= MAX_DIGESTS and all(_DIGEST.fullmatch(digest) for digest in self.digests)
        if not (sound and listed and 0 < self.ttl_ms <= MAX_TTL_MS and 0 < self.remote_port < 65536):
            raise BadRequest("The embedding ticket is out of bounds.", param="triptych")


class LocalLeg(msgspec.Struct, frozen=True, tag="local"):
    """Serve the request here from prompt to last token."""

    embeddings: EmbeddingTicket | None = None


class EncodeLeg(msgspec.Struct, frozen=True, tag="encode"):
    """Embed the media parts and answer an embedding ticket; `lease` is the caller's id for it, empty for none."""

    lease: str = ""


class PrefillLeg(msgspec.Struct, frozen=True, tag="prefill"):
    """Compute the prompt, keep its blocks under a lease and answer a ticket; `lease` as in `EncodeLeg`."""

    embeddings: EmbeddingTicket | None = None
    lease: str = ""


class DecodeLeg(msgspec.Struct, frozen=True, tag="decode"):
    """Pull the blocks that the ticket names, then sample and stream."""

    ticket: Ticket


Leg = LocalLeg | EncodeLeg | PrefillLeg | DecodeLeg


class _Transfer(msgspec.Struct):
    do_remote_decode: bool | None = None
    do_remote_prefill: bool | None = None
    embeddings: EmbeddingTicket | None = None
    lease: str | None = None


class _Triptych(msgspec.Struct):
    encode: Literal[True] | None = None
    embeddings: EmbeddingTicket | None = None
    lease: str | None = None
    resume: Any = None


def parse_leg(kv_transfer_params: bytes | None, triptych: bytes | None, *, trusted: bool) -> Leg:
    """Read the spliced object of a body into the leg that it asks for.

    Args:
        kv_transfer_params: Raw JSON of that member, None if absent or null.
        triptych: Raw JSON of that member, None if absent or null.
        trusted: The caller showed the service token.

    Raises:
        Forbidden: A caller without the token named one of the members.
        BadRequest: Malformed, contradictory or not served.
    """
    if kv_transfer_params is None and triptych is None:
        return LocalLeg()
    if not trusted:
        raise Forbidden(f"{MEMBERS[0]} and {MEMBERS[1]} are set by the router, not by clients.")
    if kv_transfer_params is not None and triptych is not None:
        raise BadRequest("A leg carries exactly one hand-over object.", param=MEMBERS[0])
    return _transfer_leg(kv_transfer_params) if kv_transfer_params is not None else _triptych_leg(triptych or b"")


def _transfer_leg(raw: bytes) -> Leg:
    transfer = decode_json(raw, _Transfer, limit_bytes=65536)
    if transfer.do_remote_decode and transfer.do_remote_prefill:
        raise BadRequest("A leg is a prefill leg or a decode leg, not both.", param=MEMBERS[0])
    if transfer.embeddings is not None and not transfer.do_remote_decode:
        raise BadRequest("Only a prefill leg takes embeddings here.", param=MEMBERS[0])
    if transfer.do_remote_decode:
        if transfer.embeddings is not None:
            transfer.embeddings.check()
        return PrefillLeg(transfer.embeddings, _chosen(transfer.lease, param=MEMBERS[0]))
    if transfer.do_remote_prefill:
        ticket = decode_json(raw, Ticket, limit_bytes=65536)
        ticket.check()
        return DecodeLeg(ticket)
    return LocalLeg()


def _triptych_leg(raw: bytes) -> Leg:
    wanted = decode_json(raw, _Triptych, limit_bytes=1 << 20)
    if wanted.resume is not None:
        raise BadRequest("This engine does not resume requests; rerun the request whole.", param="triptych")
    if wanted.encode and wanted.embeddings is not None:
        raise BadRequest("An encode leg makes embeddings, it takes none.", param="triptych")
    if wanted.encode:
        return EncodeLeg(_chosen(wanted.lease, param=MEMBERS[1]))
    if wanted.lease is not None:
        raise BadRequest("Only an encode leg names a lease here.", param=MEMBERS[1])
    if wanted.embeddings is not None:
        wanted.embeddings.check()
    return LocalLeg(wanted.embeddings)


def _chosen(lease: str | None, *, param: str) -> str:
    """The id that the caller chose for the lease, empty for none."""
    if lease is not None and not is_id(lease):
        raise BadRequest("A lease is 32 lower-case hex digits.", param=param)
    return lease or ""


class LeaseRenewal(msgspec.Struct, frozen=True):
    """Answer to `POST /instance/leases/{id}`: the lease lives for `ttl_ms` from now."""

    lease: str
    ttl_ms: int


# --- the KV link: length-prefixed MessagePack frames, then raw bytes ---------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame of a link, consumer to producer."""

    token: str
    instance_id: str
    link_class: LinkClass
    version: int = WIRE_VERSION


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The producer's answer to a `Hello` that it accepts."""

    instance_id: str
    version: int = WIRE_VERSION


class WantedBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block of the consumer's own chain that it lacks.

    Attributes:
        index: Position in the request's chain of blocks.
        identity: Block hash as the consumer computed it; empty for the partial tail.
        tokens: Valid tokens in it.
    """

    index: int
    identity: bytes
    tokens: int


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    """Ask for blocks under a lease."""

    lease: str
    blocks: tuple[WantedBlock, ...]


class BlockAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where a piece of KV belongs; version 1 always sends whole blocks of one rank.

    The ranges leave room for unequal ranks, unequal block sizes and layer-by-layer push.
    """

    rank: int = 0
    first_layer: int = 0
    last_layer: int = -1
    kv_group: int = 0
    first_head: int = 0
    last_head: int = -1


class ManifestBlock(msgspec.Struct, frozen=True, array_like=True):
    """One block that follows.

    Attributes:
        index: Position in the request's chain of blocks.
        identity: Block hash; empty for the tail.
        first_token: Position of its first token.
        tokens: Valid tokens in it; only their bytes are sent and covered by the checksum.
        size_bytes: Bytes that follow for it.
        address: Where they belong.
    """

    index: int
    identity: bytes
    first_token: int
    tokens: int
    size_bytes: int
    address: BlockAddress = BlockAddress()


class Manifest(msgspec.Struct, frozen=True, tag="manifest"):
    """What follows: for each block its bytes, then 8 bytes of xxh3-64 (little endian) over them."""

    lease: str
    blocks: tuple[ManifestBlock, ...]


class PullEmbeddings(msgspec.Struct, frozen=True, tag="pull-embeddings"):
    """Ask for embeddings by digest (hex) under a lease."""

    lease: str
    digests: tuple[str, ...]


class EmbeddingHead(msgspec.Struct, frozen=True, array_like=True):
    """One embedding that follows: rows (tokens) times `size_bytes / tokens` bytes each."""

    digest: str
    tokens: int
    dtype: str
    size_bytes: int


class EmbeddingManifest(msgspec.Struct, frozen=True, tag="embeddings"):
    """What follows: for each embedding its bytes, then 8 bytes of xxh3-64 over them."""

    lease: str
    items: tuple[EmbeddingHead, ...]


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """The consumer keeps a lease alive while it is queued or pulling."""

    lease: str


class Renewed(msgspec.Struct, frozen=True, tag="renewed"):
    """The lease lives for `ttl_ms` from now."""

    lease: str
    ttl_ms: int


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The consumer has verified its copy, or wants no more: release the lease."""

    lease: str


class Released(msgspec.Struct, frozen=True, tag="released"):
    """The lease is gone; releasing twice gives the same answer."""

    lease: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A frame that the producer does not honour: a code of the error tree and a sentence."""

    code: str
    message: str


LinkFrame = (
    Hello
    | Welcome
    | Pull
    | Manifest
    | PullEmbeddings
    | EmbeddingManifest
    | Renew
    | Renewed
    | Taken
    | Released
    | Refused
)
MAX_FRAME_BYTES = 4 * 1024 * 1024
"""Bound of one frame of the KV link; block bytes are outside of frames."""
