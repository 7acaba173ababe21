"""What the headers of a call say; those between router and engine count only from a trusted caller."""

from collections.abc import Mapping
from dataclasses import dataclass

from triptych_contract import headers
from triptych_contract.errors import BadRequest
from triptych_contract.ids import IdSource, is_name

MAX_PREFIX = 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """One call.

    Attributes:
        request_id: Of the request, echoed or minted.
        trusted: The caller showed the service token.
        epoch: That the caller believes; None = no check.
        arrived_s: Monotonic time at which the call came.
        deadline_s: Monotonic time at which the call ends.
        seed: If the client names none.
        tenant: Salts block identity.
        created: Unix seconds for the answer.
        ledger: Write ledger comments.
        prefix: The router's affinity chain.
    """

    request_id: str
    trusted: bool
    epoch: int | None
    arrived_s: float
    deadline_s: float
    seed: int
    tenant: str
    created: int
    ledger: bool
    prefix: str


def request_id_of(values: Mapping[str, str], new_id: IdSource) -> str:
    """The caller's request id if it is a safe name, else a new one."""
    given = values.get(headers.REQUEST_ID, "")
    return given if is_name(given) else new_id()


def read_caller(
    values: Mapping[str, str],
    *,
    request_id: str,
    trusted: bool,
    now_s: float,
    unix_s: float,
    timeout_s: float,
    seed: int,
) -> Caller:
    """Read the headers of one call; `seed` and the timeout are used where none is told.

    Raises:
        BadRequest: A header of a trusted caller is no number.
    """
    told = values if trusted else {}
    deadline_ms = _integer(told, headers.DEADLINE_MS)
    left_s = timeout_s if deadline_ms is None else min(timeout_s, max(0, deadline_ms) / 1000)
    created = _integer(told, headers.CREATED)
    told_seed = _integer(told, headers.SEED)
    return Caller(
        request_id=request_id,
        trusted=trusted,
        epoch=_integer(told, headers.EPOCH),
        arrived_s=now_s,
        deadline_s=now_s + left_s,
        seed=seed if told_seed is None else told_seed,
        tenant=told.get(headers.TENANT, "")[:256],
        created=int(unix_s) if created is None else created,
        ledger=told.get(headers.LEDGER) == "1",
        prefix=told.get(headers.PREFIX_CHAIN, "")[:MAX_PREFIX],
    )


def _integer(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise BadRequest(f"The header {name} must be an integer.", param=name)
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise BadRequest(f"The header {name} is out of range.", param=name)
    return value
