"""What each message of the server does to the core."""

import logging
from collections.abc import Callable
from typing import Any

from triptych_contract.errors import BadRequest, HandoverRefused, Internal, Unsupported
from triptych_engine.core.intake import refuse
from triptych_engine.core.request import Request, Sequence, State, lacks_embeddings
from triptych_engine.core.state import CoreState
from triptych_engine.messages import (
    Cancel,
    Encode,
    Encoded,
    FinishReason,
    Mode,
    PullEnded,
    ReleaseLease,
    Submit,
)
from triptych_engine.schedule.admit import settle

_LOG = logging.getLogger(__name__)

IMAGES_GONE = HandoverRefused("The images of this request were embedded elsewhere and cannot be computed here.")


def submit(state: CoreState, message: Submit) -> None:
    """A request waits, is refused, or has nothing to compute."""
    waiting = state.queues.waiting
    error = refuse(
        message,
        state.limits,
        num_waiting=len(waiting),
        waiting_tokens=sum(len(one.tokens) for one in waiting) if len(waiting) >= state.limits.max_waiting else 0,
        profile=state.executor.info.profile,
    )
    if message.id in state.requests or (message.mode is Mode.PREFILL and message.lease in state.leases):
        error = BadRequest("The id of this request is in use.")
    if error is not None:
        state.refuse(message.id, error)
        return
    state.changed = True
    request = state.add(message)
    if message.sampling.max_tokens == 0 and message.mode is not Mode.PREFILL:
        end(state, request, FinishReason.LENGTH)


def cancel(state: CoreState, message: Cancel) -> None:
    """A request or one of its choices ends in silence."""
    request = state.requests.get(message.id)
    if request is None:
        return
    if message.choice is None:
        end(state, request, FinishReason.CANCELLED)
    elif message.choice in request.open_choices:
        state.end_choice(request, message.choice, FinishReason.CANCELLED)


def end(state: CoreState, request: Request, reason: FinishReason) -> None:
    """End all open choices of a request."""
    for choice in sorted(request.open_choices):
        state.tell_end(request, choice, reason)
    state.end_request(request)


def pull_ended(state: CoreState, message: PullEnded) -> None:
    """Blocks are here, or will not come; either way nobody else writes to them from now on."""
    request = state.requests.get(message.id)
    sequence = next(iter(request.sequences.values())) if request else None
    if request is None or sequence is None or sequence.state is not State.PULLING:
        return
    state.changed = True
    if sequence.ended_in_pull:
        state.end_sequence(sequence)
        return
    if message.ok:
        _accept_blocks(state, sequence, message.received)
    sequence.num_cached = sequence.num_computed
    state.queues.move(sequence, State.RUNNING)
    if lacks_embeddings(request.submit, first=sequence.num_computed):
        state.reject(request, IMAGES_GONE)


def _accept_blocks(state: CoreState, sequence: Sequence, received: tuple[int, ...]) -> None:
    """Take received blocks over, as far as they continue the chain that stands here already."""
    stored = sequence.num_registered
    while stored < len(sequence.table) and stored in received:
        stored += 1
    taken = sequence.table[sequence.num_registered : stored]
    try:
        state.executor.import_blocks(taken)
    except Exception:
        _LOG.exception("received blocks could not be taken over; the prompt is computed here")
        return
    known = sequence.num_registered
    settle(sequence, stored_blocks=stored, block_tokens=state.budget.block_tokens)
    sequence.num_registered = known
    state.register(sequence)


def release_lease(state: CoreState, message: ReleaseLease) -> None:
    """Blocks of a lease are nobody's any more."""
    sequence = state.leases.pop(message.lease, None)
    if sequence is None:
        return
    state.pool.unlease(sequence.table)
    sequence.move(State.FINISHED)
    state.changed = True


def encode(state: CoreState, message: Encode) -> None:
    """Embed one image, between two steps."""
    try:
        data = state.executor.encode(message.data, message.count)
    except ValueError:
        state.refuse(message.id, Unsupported("This model takes no images."))
        return
    except Exception:
        _LOG.exception("an image could not be embedded")
        state.refuse(message.id, Internal("The image could not be embedded."))
        return
    state.counters.encoder_runs += 1
    state.changed = True
    state.send(Encoded(id=message.id, digest=message.digest, count=message.count, data=data))


HANDLERS: dict[type, Callable[[CoreState, Any], None]] = {
    Submit: submit,
    Cancel: cancel,
    PullEnded: pull_ended,
    ReleaseLease: release_lease,
    Encode: encode,
}
"""What to do with each message that changes the core's state."""
