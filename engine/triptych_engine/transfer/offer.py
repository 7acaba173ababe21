"""What a producer offers for a request of the KV link: pure checks of what is asked against what is leased."""

from collections.abc import Sequence
from itertools import pairwise

from triptych_contract.errors import HandoverRefused
from triptych_contract.handover import (
    EmbeddingHead,
    EmbeddingManifest,
    Manifest,
    ManifestBlock,
    Pull,
    PullEmbeddings,
    WantedBlock,
)
from triptych_engine.kv.layout import KVLayout
from triptych_engine.transfer.embeddings import StoredEmbedding
from triptych_engine.transfer.leases import EmbeddingHolding, KVHolding, Lease


def offer_blocks(pull: Pull, lease: Lease, layout: KVLayout) -> Manifest:
    """The manifest for wanted blocks, in their order.

    Raises:
        HandoverRefused: A block is not part of the lease under the identity and with the tokens that it has.
    """
    holding = lease.holding
    if not isinstance(holding, KVHolding):
        raise HandoverRefused("The lease holds embeddings, not KV blocks.")
    indices = [wanted.index for wanted in pull.blocks]
    if any(later <= earlier for earlier, later in pairwise(indices)):
        raise HandoverRefused("The blocks of a pull must be asked for once each, in chain order.")
    return Manifest(lease.id, tuple(_offer_block(wanted, holding, layout) for wanted in pull.blocks))


def _offer_block(wanted: WantedBlock, holding: KVHolding, layout: KVLayout) -> ManifestBlock:
    if not 0 <= wanted.index < len(holding.blocks):
        raise HandoverRefused("A block of the pull lies outside of the lease.")
    full = wanted.index < len(holding.identities)
    identity = holding.identities[wanted.index] if full else b""
    first_token = wanted.index * layout.block_tokens
    tokens = min(layout.block_tokens, holding.num_tokens - first_token)
    if wanted.identity != identity or wanted.tokens != tokens:
        raise HandoverRefused("A block of the pull has another identity or length than the leased one.")
    return ManifestBlock(wanted.index, identity, first_token, tokens, layout.valid_bytes(tokens))


def offer_embeddings(
    pull: PullEmbeddings, lease: Lease, entries: Sequence[StoredEmbedding | None], dtype: str
) -> EmbeddingManifest:
    """The manifest for wanted embeddings, in their order.

    Args:
        pull: What is asked.
        lease: Under which lease.
        entries: What the store has for each digest.
        dtype: Element type of this instance's embeddings.

    Raises:
        HandoverRefused: One of them is not part of the lease.
    """
    holding = lease.holding
    if not isinstance(holding, EmbeddingHolding):
        raise HandoverRefused("The lease holds KV blocks, not embeddings.")
    leased = {digest.hex() for digest in holding.digests}
    heads: list[EmbeddingHead] = []
    for digest, entry in zip(pull.digests, entries, strict=True):
        if digest not in leased or entry is None:
            raise HandoverRefused("An embedding of the pull lies outside of the lease.")
        heads.append(EmbeddingHead(digest, entry.count, dtype, len(entry.data)))
    return EmbeddingManifest(lease.id, tuple(heads))


def is_answer(manifest: Manifest, pull: Pull, layout: KVLayout) -> bool:
    """True if a manifest announces exactly what was asked for, as a layout equal to ours stores it."""
    expected = tuple(
        ManifestBlock(
            index=wanted.index,
            identity=wanted.identity,
            first_token=wanted.index * layout.block_tokens,
            tokens=wanted.tokens,
            size_bytes=layout.valid_bytes(wanted.tokens),
        )
        for wanted in pull.blocks
    )
    return manifest == Manifest(pull.lease, expected)


def is_embedding_answer(manifest: EmbeddingManifest, pull: PullEmbeddings, *, dtype: str, row_bytes: int) -> bool:
    """True if a manifest announces exactly the embeddings asked for, in our own element type and width."""
    if manifest.lease != pull.lease or tuple(head.digest for head in manifest.items) != pull.digests:
        return False
    return all(
        head.dtype == dtype and head.tokens > 0 and head.size_bytes > 0 and head.size_bytes == head.tokens * row_bytes
        for head in manifest.items
    )
