"""Two hashes for two jobs, never mixed.

Block identity (SHA-256, chained): who may reuse which KV block. A wrong hit gives wrong text or leaks
between tenants, so it is a cryptographic hash whose root keeps models, dtypes, adapters and tenants apart.
Affinity chain (xxh3, chained): where the router guesses a prefix to be cached. It may be wrong without harm.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from sys import byteorder

import msgspec
import xxhash

from triptych_contract import WIRE_VERSION

HASH_BLOCK_TOKENS = 32
"""Service-wide granularity of block hashes; a physical block is a multiple of it."""

AFFINITY_BLOCK_BYTES = 1024
AFFINITY_MAX_BLOCKS = 32


class MediaSpan(msgspec.Struct, frozen=True):
    """Where in a prompt the embeddings of one image stand.

    Attributes:
        digest: `media_digest` of the image.
        first: Position of its first token.
        count: Number of tokens it takes.
    """

    digest: bytes
    first: int
    count: int


def chain_root(*, fingerprint: str, kv_dtype: str, adapter: str = "", tenant: str = "", cache_salt: str = "") -> bytes:
    """The 32-byte root of a block chain; requests with unequal roots never share a block."""
    return hashlib.sha256(
        msgspec.msgpack.encode((WIRE_VERSION, fingerprint, kv_dtype, adapter, tenant, cache_salt))
    ).digest()


def media_digest(data: bytes, *, size: tuple[int, int], mode: str, tenant: str) -> bytes:
    """32-byte identity of an image: its bytes, its size in pixels, its mode and the tenant's salt."""
    return hashlib.sha256(msgspec.msgpack.encode((WIRE_VERSION, size, mode, tenant)) + data).digest()


def chain_hashes(
    root: bytes,
    token_ids: Sequence[int],
    *,
    block_tokens: int = HASH_BLOCK_TOKENS,
    media: Sequence[MediaSpan] = (),
    start_block: int = 0,
) -> list[bytes]:
    """Chained hashes of the full blocks of a prompt; the partial tail has none.

    Args:
        root: `chain_root`, or the hash of block `start_block - 1`.
        token_ids: All token ids from position 0.
        block_tokens: Tokens a block, a multiple of `HASH_BLOCK_TOKENS`.
        media: Images in the prompt; their digests go into the blocks that they overlap.
        start_block: First block to hash.

    Returns:
        One 32-byte hash for each full block from `start_block` on.
    """
    packed = array("i", token_ids)
    if byteorder == "big":
        packed.byteswap()
    view = memoryview(packed).cast("B")
    hashes: list[bytes] = []
    parent = root
    for block in range(start_block, len(token_ids) // block_tokens):
        first = block * block_tokens
        state = hashlib.sha256(parent)
        state.update(view[first * 4 : (first + block_tokens) * 4])
        for span in media:
            if span.first < first + block_tokens and first < span.first + span.count:
                state.update(span.digest + (span.first - first).to_bytes(8, "little", signed=True))
        parent = state.digest()
        hashes.append(parent)
    return hashes


def affinity_chain(data: bytes | memoryview) -> list[int]:
    """Chained xxh3-64 over whole blocks of request bytes, at most `AFFINITY_MAX_BLOCKS` of them."""
    view = memoryview(data)
    chain: list[int] = []
    parent = 0
    for block in range(min(len(view) // AFFINITY_BLOCK_BYTES, AFFINITY_MAX_BLOCKS)):
        first = block * AFFINITY_BLOCK_BYTES
        parent = xxhash.xxh3_64_intdigest(view[first : first + AFFINITY_BLOCK_BYTES], seed=parent)
        chain.append(parent)
    return chain


def checksum(parts: Iterable[bytes | memoryview]) -> int:
    """xxh3-64 over the concatenation of parts: guards bytes in transit, is no identity."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()
