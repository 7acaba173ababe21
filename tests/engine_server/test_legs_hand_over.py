"""The three legs as the router would call them, one engine a stage: same text, and counters that prove it."""

import asyncio
from typing import Any

import pytest

from fakes.asking import image_part, png
from fakes.fleet import Fleet

pytestmark = pytest.mark.process

FAST = ("--sim-profile", "0.001,0,0,0,0")
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


async def ask(fleet: Fleet, name: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer of one engine."""
    async with fleet.http.post(fleet.children[name].url + path, json=body, headers=fleet.auth) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 200, found
        return found


async def start(fleet: Fleet, **roles: str) -> None:
    await asyncio.gather(*(fleet.start_engine(name, role, *FAST) for name, role in roles.items()))


async def test_prefill_and_decode_give_the_text_of_one_instance(fleet: Fleet) -> None:
    await start(fleet, p="prefill", d="decode", m="mixed")
    body: dict[str, Any] = {"prompt": "once upon a time " * 9, "max_tokens": 20, "seed": 3, "n": 2, "ignore_eos": True}
    alone = await ask(fleet, "m", TEXT, body)
    first = await ask(fleet, "p", TEXT, {**body, "kv_transfer_params": {"do_remote_decode": True}})
    second = await ask(fleet, "d", TEXT, {**body, "kv_transfer_params": first["kv_transfer_params"]})
    assert [c["text"] for c in second["choices"]] == [c["text"] for c in alone["choices"]]
    states = await fleet.settled("p", "d", "m")
    assert states["d"].load.handover.tokens_recomputed == 1
    assert states["d"].load.handover.blocks_received == states["p"].load.handover.blocks_sent > 0


async def test_encode_prefill_and_decode_give_the_text_of_one_instance(fleet: Fleet) -> None:
    await start(fleet, e="encode", p="prefill", d="decode", m="all")
    content = [{"type": "text", "text": "look " * 20}, image_part(png(shade=7))]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
    alone = await ask(fleet, "m", CHAT, body)
    encoded = await ask(fleet, "e", CHAT, {**body, "triptych": {"encode": True}})
    transfer = {"do_remote_decode": True, "embeddings": encoded["triptych"]["embeddings"]}
    first = await ask(fleet, "p", CHAT, {**body, "kv_transfer_params": transfer})
    second = await ask(fleet, "d", CHAT, {**body, "kv_transfer_params": first["kv_transfer_params"]})
    assert second["choices"][0]["message"] == alone["choices"][0]["message"]
    assert second["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    states = await fleet.settled("e", "p", "d", "m")
    assert states["e"].load.handover.encoder_runs == 1
    assert states["p"].load.handover.encoder_runs == 0
    assert states["d"].load.handover.tokens_recomputed == 1


@pytest.mark.parametrize("change", [{"remote_host": "127.0.0.2"}, {"remote_engine_id": "x"}, {"fingerprint": "0" * 16}])
async def test_a_forged_ticket_is_refused_before_anything_is_dialled(fleet: Fleet, change: dict[str, Any]) -> None:
    await start(fleet, p="prefill", d="decode")
    body = {"prompt": "once upon a time " * 9, "max_tokens": 4}
    first = await ask(fleet, "p", TEXT, {**body, "kv_transfer_params": {"do_remote_decode": True}})
    forged = {**body, "kv_transfer_params": {**first["kv_transfer_params"], **change}}
    async with fleet.http.post(fleet.children["d"].url + TEXT, json=forged, headers=fleet.auth) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (409, "handover_refused")
    states = await fleet.settled("p", "d")
    assert states["d"].load.handover.refused == 1


async def test_a_lost_lease_costs_a_recomputation_and_no_text(fleet: Fleet) -> None:
    await start(fleet, p="prefill", d="decode", m="mixed")
    body = {"prompt": "once upon a time " * 9, "max_tokens": 8, "temperature": 0}
    alone = await ask(fleet, "m", TEXT, body)
    first = await ask(fleet, "p", TEXT, {**body, "kv_transfer_params": {"do_remote_decode": True}})
    ticket = first["kv_transfer_params"]
    url = f"{fleet.children['p'].url}/instance/leases/{ticket['lease']}"
    async with fleet.http.delete(url, headers=fleet.auth):
        pass
    second = await ask(fleet, "d", TEXT, {**body, "kv_transfer_params": ticket})
    assert second["choices"] == alone["choices"]
    states = await fleet.settled("p", "d", "m")
    assert states["d"].load.handover.failed == 1
    assert states["d"].load.handover.tokens_recomputed == second["usage"]["prompt_tokens"]


async def test_a_caller_chooses_the_lease_and_gives_it_back_unread(fleet: Fleet) -> None:
    await start(fleet, p="prefill")
    lease, late = "a" * 32, "b" * 32
    leases = f"{fleet.children['p'].url}/instance/leases"
    body = {"prompt": "once upon a time " * 9, "max_tokens": 4}

    async def prefill(lease: str) -> tuple[int, dict[str, Any]]:
        leg = {**body, "kv_transfer_params": {"do_remote_decode": True, "lease": lease}}
        async with fleet.http.post(fleet.children["p"].url + TEXT, json=leg, headers=fleet.auth) as answer:
            return answer.status, await answer.json()

    status, answer = await prefill(lease)
    assert (status, answer["kv_transfer_params"]["lease"]) == (200, lease)
    status, answer = await prefill(lease)
    assert (status, answer["error"]["code"]) == (409, "handover_refused"), "the id is in use"
    status, answer = await prefill("no id")
    assert (status, answer["error"]["param"]) == (400, "kv_transfer_params")
    for each in (lease, late):
        async with fleet.http.delete(f"{leases}/{each}", headers=fleet.auth) as released:
            assert released.status == 200
    status, answer = await prefill(late)
    assert (status, answer["error"]["code"]) == (409, "handover_refused"), "its release came first"
    await fleet.settled("p", deadline_s=1.0)
