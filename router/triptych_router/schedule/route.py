"""Pure: the route of a request. One instance that does all, or a hand-over from stage to stage.

Entries of a route are, where a hand-over is worth it, the instances that only prefill and those that do both;
else all that decode, since a decode instance can always prefill for itself. The decode instance of a hand-over
is bound late, once the prefill has answered.

    gain_s = neighbours × prefill_s(prompt) − (HOP_S + tokens × TRANSFER_TOKEN_S)

Computing a prompt on the decode instance holds up each of its sequences by the prompt's time; an idle one counts
as having one neighbour, the next request. A hand-over costs a hop and the transfer. With a least prompt of 0
tokens the gain is not asked: whatever can be handed over is, so that a small model's pools can be watched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from triptych_contract.errors import NoInstance, TriptychError
from triptych_contract.profile import prefill_seconds
from triptych_contract.roles import Stage
from triptych_router.api.parse import Parsed
from triptych_router.cluster.view import ClusterView, InstanceView
from triptych_router.schedule.filters import Excluded, candidates, linked, without
from triptych_router.schedule.policies import Loads, Policy, neighbours, order

HOP_S = 0.001
"""One more HTTP call and a link between two processes, as measured on loopback."""
TRANSFER_TOKEN_S = 2e-6
"""A token's KV of some kilobytes at a gigabyte a second."""
NO_INSTANCE_RETRY_MS = 1000


class Shape(StrEnum):
    """The stages that a route calls, for metrics and logs."""

    LOCAL = "local"
    ENCODE_LOCAL = "encode-local"
    HANDOVER = "prefill-decode"
    ENCODE_HANDOVER = "encode-prefill-decode"


@dataclass(frozen=True, slots=True)
class Leg:
    """One stage of a route and the instance that is bound to it; None is bound late."""

    stage: Stage
    instance: InstanceView | None


@dataclass(frozen=True, slots=True)
class Route:
    """The legs in order, and why they were chosen.

    A route without a prefill leg ends with a decode leg whose instance does both.
    """

    legs: tuple[Leg, ...]
    reason: str

    def leg(self, stage: Stage) -> Leg | None:
        """The leg of a stage."""
        for leg in self.legs:
            if leg.stage is stage:
                return leg
        return None

    @property
    def shape(self) -> Shape:
        """The stages it calls."""
        encodes = self.leg(Stage.ENCODE) is not None
        if self.leg(Stage.PREFILL) is not None:
            return Shape.ENCODE_HANDOVER if encodes else Shape.HANDOVER
        return Shape.ENCODE_LOCAL if encodes else Shape.LOCAL


def schedule(
    view: ClusterView,
    request: Parsed,
    loads: Loads,
    policy: Policy,
    *,
    turn: int,
    handover_min_tokens: int,
    excluded: Excluded = frozenset(),
) -> Route:
    """Choose the route.

    Raises:
        NoInstance: No usable instance decodes, or all that could begin have refused.
    """
    decode = candidates(view, Stage.DECODE, model=request.model)
    if not decode:
        raise no_instance(Stage.DECODE)
    refusal = why_local(view, request, loads, decode, handover_min_tokens=handover_min_tokens)
    entries = _mixed(decode) if not refusal else decode
    if not refusal:
        entries = tuple(sorted((*_producers(view, request, decode), *entries), key=lambda entry: entry.id))
    ranked = order(policy, without(entries, excluded), request, loads, turn=turn)
    if not ranked and not refusal:
        refusal = "every instance that prefills has refused"
        ranked = order(policy, without(decode, excluded), request, loads, turn=turn)
    if not ranked:
        raise no_instance(Stage.PREFILL)
    entry = ranked[0]
    encoder = encoder_for(view, request, loads, policy, entry=entry, turn=turn, excluded=excluded)
    return _route(entry, encoder, refusal)


def _route(entry: InstanceView, encoder: InstanceView | None, refusal: str) -> Route:
    alone = Stage.DECODE in entry.stages
    begin = Leg(Stage.DECODE, entry) if alone else Leg(Stage.PREFILL, entry)
    reason = (refusal or "it prefills and decodes") if alone else "the hand-over gains"
    encode = (Leg(Stage.ENCODE, encoder),) if encoder is not None else ()
    return Route((*encode, begin, *(() if alone else (Leg(Stage.DECODE, None),))), reason)


def why_local(
    view: ClusterView, request: Parsed, loads: Loads, decode: Sequence[InstanceView], *, handover_min_tokens: int
) -> str:
    """Why no hand-over is made; empty if one is."""
    if request.prompts > 1:
        return "a list of prompts"
    if request.echo_logprobs:
        return "log probabilities of the prompt"
    if request.prompt_tokens < max(2, handover_min_tokens):
        return "a short prompt"
    if not _producers(view, request, decode):
        return "no instance that only prefills"
    if handover_min_tokens > 0 and max(gain_s(instance, request, loads) for instance in decode) <= 0:
        return "the hand-over costs more than it gains"
    return ""


def gain_s(decode: InstanceView, request: Parsed, loads: Loads) -> float:
    """Predicted seconds that a hand-over to this instance spares its neighbours, less what it costs."""
    prefill_s = prefill_seconds(decode.state.profile, request.prompt_tokens)
    return max(1, neighbours(decode, loads)) * prefill_s - HOP_S - request.prompt_tokens * TRANSFER_TOKEN_S


def bind_decode(
    view: ClusterView,
    request: Parsed,
    loads: Loads,
    policy: Policy,
    *,
    link_class: str,
    turn: int,
    excluded: Excluded = frozenset(),
) -> InstanceView | None:
    """The decode instance for a prefill that has answered, of the same link class; None if there is none now."""
    able = linked(candidates(view, Stage.DECODE, model=request.model), link_class)
    left = without(able, excluded)
    ranked = order(policy, _decode_only_first(left), request, loads, turn=turn)
    return ranked[0] if ranked else None


def encoder_for(
    view: ClusterView,
    request: Parsed,
    loads: Loads,
    policy: Policy,
    *,
    entry: InstanceView,
    turn: int,
    excluded: Excluded = frozenset(),
) -> InstanceView | None:
    """The instance that embeds the images; None if there are none, or the entry embeds them itself."""
    if not request.media or Stage.ENCODE in entry.stages:
        return None
    others = [instance for instance in candidates(view, Stage.ENCODE, model=request.model) if instance.id != entry.id]
    ranked = order(policy, without(others, excluded), request, loads, turn=turn)
    return ranked[0] if ranked else None


def no_instance(stage: Stage) -> TriptychError:
    """The refusal when nobody can take a stage."""
    message = f"No instance can {stage.value} at present; try again shortly."
    return NoInstance(message, retry_after_ms=NO_INSTANCE_RETRY_MS)


def _mixed(decode: Sequence[InstanceView]) -> tuple[InstanceView, ...]:
    return tuple(instance for instance in decode if Stage.PREFILL in instance.stages)


def _producers(view: ClusterView, request: Parsed, decode: Sequence[InstanceView]) -> tuple[InstanceView, ...]:
    """Instances that only prefill and have somebody to hand over to."""
    classes = {instance.state.link_class for instance in decode}
    able = candidates(view, Stage.PREFILL, model=request.model)
    return tuple(
        instance for instance in able if Stage.DECODE not in instance.stages and instance.state.link_class in classes
    )


def _decode_only_first(able: Sequence[InstanceView]) -> Sequence[InstanceView]:
    """Instances that only decode, or all if there are none: mixed ones have prompts of their own to compute."""
    return [instance for instance in able if Stage.PREFILL not in instance.stages] or able
