"""Pure: the order in which instances of one stage are preferred.

`LeastLoad` counts seconds of work, since a request of a thousand tokens is not one of ten:

    cost(w)   = queued(w) + own(w) + decode(w)
    queued(w) = uncached prompt tokens at w whose first token is not out × seconds a prompt token
    own(w)    = predicted seconds to compute this prompt at w
    decode(w) = 0.1 × sequences at w × seconds a sequence and step × expected output tokens

Each count is the larger of what the instance last said (a beat old, all routers together) and what this router
has sent it (exact, its own only). Ties go to whoever the turn points at, so that idle instances share.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from triptych_contract.profile import prefill_seconds
from triptych_router.api.parse import Parsed
from triptych_router.cluster.view import InstanceView
from triptych_router.schedule.load import NOTHING, InFlight, LifeKey

DECODE_WEIGHT = 0.1
"""Share of a decoding neighbour's remaining work that delays a new request: it adds to steps, it is not before it."""


class Policy(StrEnum):
    """Names as operators write them."""

    LEAST_LOAD = "LeastLoad"
    ROUND_ROBIN = "RoundRobin"


Loads = Mapping[LifeKey, InFlight]


def order(
    policy: Policy, instances: Sequence[InstanceView], request: Parsed, loads: Loads, *, turn: int
) -> list[InstanceView]:
    """The instances, best first.

    Args:
        policy: How to rank.
        instances: Candidates in a stable order (by id).
        request: What is to be served.
        loads: What this router has in flight.
        turn: Rises by one with each decision on this stage.
    """
    if len(instances) < 2:
        return list(instances)
    first = turn % len(instances)
    rotated = [*instances[first:], *instances[:first]]
    if policy is Policy.ROUND_ROBIN:
        return rotated
    return sorted(rotated, key=lambda instance: cost_s(instance, request, loads))


def cost_s(instance: InstanceView, request: Parsed, loads: Loads) -> float:
    """Predicted seconds of work before and of this prompt at an instance."""
    profile = instance.state.profile
    in_flight = in_flight_at(instance, loads)
    queued_tokens = max(in_flight.prefill_tokens, instance.load.waiting_tokens)
    output_tokens = max(in_flight.output_tokens, neighbours(instance, loads) * request.output_tokens)
    return (
        queued_tokens * profile.prefill_token_s
        + prefill_seconds(profile, request.prompt_tokens)
        + DECODE_WEIGHT * output_tokens * profile.sequence_s
    )


def neighbours(instance: InstanceView, loads: Loads) -> int:
    """Requests at an instance."""
    return max(in_flight_at(instance, loads).requests, instance.load.running + instance.load.waiting)


def in_flight_at(instance: InstanceView, loads: Loads) -> InFlight:
    """This router's account of one instance."""
    return loads.get((instance.record.id, instance.record.incarnation), NOTHING)
