"""Asks a service one question and proves by counters that its parts worked together.

On a service with prefill and decode instances a healthy hand-over means: the decode instance received KV blocks and
computed exactly one prompt token itself, the last one. Anything else is a failure, however good the text is.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from triptych.failure import Failure
from triptych.live import Handover, ask
from triptych.openai_chat import Answer, answer
from triptych_contract.roles import Role
from triptych_operator.state_dir import StateDirectory

MAX_TOKENS = 64
SETTLE_S = 5.0
POLL_S = 0.05
INSTRUCTION = (
    "You answer questions about this service. It has pools of instances: encode instances turn images into "
    "embeddings, prefill instances compute the prompt, decode instances write the answer token by token. The "
    "keys and values of the prompt pass from prefill to decode as blocks under a lease. Answer in one sentence."
)
"""A system message of a length that is worth a hand-over; a very short prompt may be served by one instance."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What one question did: the answer, and the decode instance's counters for it (None without a hand-over)."""

    answer: Answer
    handover: Handover | None


async def ask_one(state: StateDirectory, *, url: str, model: str, text: str, disaggregated: bool) -> Proof:
    """Ask, then read the counters.

    Args:
        state: Of the service.
        url: Base URL of the router.
        model: Served model name.
        text: The question.
        disaggregated: The service has prefill and decode instances, so a hand-over is demanded.

    Raises:
        Failure: No answer, or no healthy hand-over where one is demanded.
    """
    before = await _counters(state, url)
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
    given = await answer(url, model=model, messages=messages, max_tokens=MAX_TOKENS, temperature=0.0)
    if not disaggregated:
        return Proof(given, None)
    decode = given.served_by.get("decode")
    if decode is None or "prefill" not in given.served_by:
        served = ", ".join(f"{stage}={instance}" for stage, instance in given.served_by.items()) or "nobody named"
        raise Failure(f"no hand-over took place: the request was served by {served}; see: triptych logs router")
    end_s = time.monotonic() + SETTLE_S
    while True:
        seen = _difference(before.get(decode), (await _counters(state, url)).get(decode))
        if healthy(seen) or time.monotonic() > end_s:
            break
        await asyncio.sleep(POLL_S)
    if not healthy(seen):
        raise Failure(
            f"the hand-over to {decode} is not healthy: it computed {seen.tokens_recomputed} prompt tokens itself "
            f"(1 is right) and received {seen.blocks_received} blocks (more than 0 is right); "
            f"see: triptych logs {decode}"
        )
    return Proof(given, seen)


def healthy(seen: Handover) -> bool:
    """Exactly one prompt token computed by the decode instance, and blocks received."""
    return seen.tokens_recomputed == 1 and seen.blocks_received > 0


def is_disaggregated(roles: Mapping[str, object]) -> bool:
    """True if the roles of a status include prefill and decode."""
    return str(Role.PREFILL) in roles and str(Role.DECODE) in roles


async def _counters(state: StateDirectory, url: str) -> dict[str, Handover]:
    answers = await ask(state, url)
    found = {name: heard.load.handover for name, heard in answers.states.items() if heard is not None}
    return {
        name: Handover(counts.blocks_sent, counts.blocks_received, counts.tokens_recomputed)
        for name, counts in found.items()
    }


def _difference(before: Handover | None, after: Handover | None) -> Handover:
    old, new = before or Handover(), after or Handover()
    return Handover(
        new.blocks_sent - old.blocks_sent,
        new.blocks_received - old.blocks_received,
        new.tokens_recomputed - old.tokens_recomputed,
    )
