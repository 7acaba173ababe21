"""Effects of the three hand-over legs: embeddings found or made, blocks granted, blocks pulled."""

from collections.abc import Iterable

from triptych_contract.errors import HandoverRefused, Internal, TriptychError
from triptych_contract.handover import EmbeddingTicket, Ticket
from triptych_engine.messages import Embedding, Encode, Encoded, LeaseGranted, PullWanted, Submit
from triptych_engine.server.caller import Caller
from triptych_engine.server.engine import Engine
from triptych_engine.server.prompts import Prepared
from triptych_engine.server.requests import OpenCall
from triptych_engine.server.times import Times


async def find_embeddings(
    engine: Engine, prompts: Iterable[Prepared], ticket: EmbeddingTicket | None
) -> dict[bytes, bytes]:
    """Rows of all images by digest: kept here, else pulled under the ticket, else embedded here."""
    images = {span.digest: image.data for p in prompts for span, image in zip(p.media, p.images, strict=True)}
    found = {digest: kept.data for digest in images if (kept := engine.handover.embeddings.get(digest)) is not None}
    missing = [digest for digest in images if digest not in found]
    if ticket is not None:
        found |= await _pull_embeddings(engine, ticket, missing)
    for digest in missing:
        if digest not in found:
            found[digest] = await embed(engine, digest, images[digest])
    return found


async def _pull_embeddings(engine: Engine, ticket: EmbeddingTicket, missing: list[bytes]) -> dict[bytes, bytes]:
    """What the ticket names of the missing ones; a ticket that cannot be honoured costs only time."""
    named = [digest for digest in missing if digest.hex() in ticket.digests]
    if not named:
        await engine.handover.abandon(ticket)
        return {}
    try:
        return await engine.handover.pull_embeddings(ticket, named)
    except HandoverRefused:
        return {}


async def embed(engine: Engine, digest: bytes, data: bytes) -> bytes:
    """Embed one image at the core and keep the result; whoever wants the same one meanwhile waits for it."""
    async with engine.encoding:
        kept = engine.handover.embeddings.get(digest)
        if kept is not None:
            return kept.data
        encode = Encode(id=engine.new_id(), digest=digest, data=data, count=engine.card.image_tokens)
        with engine.table.open([encode]) as call:
            event = await call.next()
        if not isinstance(event, Encoded):
            raise Internal("The image could not be embedded.")
        engine.handover.embeddings.put(digest, event.data, count=event.count)
        return event.data


async def encode_leg(engine: Engine, prompt: Prepared, lease: str) -> EmbeddingTicket:
    """Embed all images of a prompt and put them under this lease."""
    with engine.handover.promised(lease):
        await find_embeddings(engine, (prompt,), None)
        return engine.handover.grant_embeddings([span.digest for span in prompt.media], lease)


async def prefill_leg(engine: Engine, submit: Submit, caller: Caller) -> tuple[Ticket, int]:
    """Compute the prompt and put its blocks under its lease; the ticket and the number of cached tokens."""
    times = Times(arrived_s=caller.arrived_s, submitted_s=engine.clock.now_s())
    with engine.handover.promised(submit.lease):
        with engine.table.open([submit]) as call:
            event = await call.next()
        if not isinstance(event, LeaseGranted):
            raise Internal("The prompt's blocks could not be kept.")
        ticket = engine.handover.grant(event, caller.request_id)
    for name, seconds in times.of_prefill(admitted_s=event.admitted_s, end_s=engine.clock.now_s()):
        engine.metrics.observe(name, seconds)
    engine.metrics.observe("vllm:request_prompt_tokens", event.num_tokens)
    return ticket, event.cached_tokens


def embedded(prompt: Prepared, rows: dict[bytes, bytes]) -> tuple[Embedding, ...]:
    """The rows of a prompt's images at their positions."""
    return tuple(Embedding(span.digest, span.first, span.count, rows[span.digest]) for span in prompt.media)


async def take_blocks(engine: Engine, call: OpenCall, ticket: Ticket) -> None:
    """Wait until the core has room, pull the blocks into it, and tell it how that ended.

    A failed pull is not an error: the core computes the prompt itself. After a cancellation nothing writes
    into the pool any more, so the core may be told to free the blocks.
    """
    event = await call.next()
    if not isinstance(event, PullWanted):
        raise Internal("The hand-over's blocks found no place.")
    call.pull_ended(await engine.handover.pull(ticket, event))


async def settle(engine: Engine, ticket: Ticket, error: BaseException) -> None:
    """A ticket whose blocks were not pulled: another instance may still want them, or nobody does."""
    if isinstance(error, TriptychError) and error.elsewhere:
        engine.handover.forget(ticket)
    else:
        await engine.handover.abandon(ticket)
