"""What stays the same over all attempts of a request, and the headers that say so."""

from dataclasses import dataclass

from triptych_contract import headers
from triptych_router.api.parse import Parsed
from triptych_router.cluster.view import InstanceView


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One request.

    Attributes:
        request_id: Echoed or minted.
        tenant: Name of the API key; empty without keys.
        created: Unix seconds, from which response ids derive.
        seed: Minted where the client gave none.
        deadline_s: On the router's monotonic clock.
        parsed: What was asked.
    """

    request_id: str
    tenant: str
    created: int
    seed: int | None
    deadline_s: float
    parsed: Parsed


def leg_headers(
    context: Context, instance: InstanceView, *, attempt: int, token: str, now_s: float, ledger: bool
) -> dict[str, str]:
    """The headers of one attempt; nothing of the client's own is among them."""
    made = {
        "content-type": "application/json",
        headers.REQUEST_ID: context.request_id,
        headers.ATTEMPT: str(attempt),
        headers.EPOCH: str(instance.state.epoch),
        headers.DEADLINE_MS: str(max(1, round((context.deadline_s - now_s) * 1000))),
        headers.CREATED: str(context.created),
    }
    if context.seed is not None:
        made[headers.SEED] = str(context.seed)
    if context.tenant:
        made[headers.TENANT] = context.tenant
    if ledger:
        made[headers.LEDGER] = "1"
    if token:
        made["authorization"] = f"Bearer {token}"
    return made
