"""What one caller says or has never shows to another: logs, headers of ours, cached blocks of another tenant."""

import json
from typing import Any

import pytest

from fakes.asking import ask, image_part, png
from fakes.fleet import Fleet
from fakes.hostile import KEYS, Target, key_of, one_error, post

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("unharmed")]

MARKER = "zebra-crossing-4711"
TEXT: dict[str, Any] = {"model": "sim", "max_tokens": 4, "temperature": 0}


def prompt_of(name: str, words: int = 120) -> str:
    """Long enough for several blocks and for a hand-over; its own for each test."""
    return " ".join(f"{name}{number}" for number in range(words))


def cached(usage: dict[str, Any] | None) -> int:
    assert usage is not None
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def prefilled(fleet: Fleet, body: dict[str, Any], tenant: str) -> tuple[dict[str, Any], int]:
    """The ticket of a prefill leg, and how many tokens were cached for it."""
    leg = {**body, "kv_transfer_params": {"do_remote_decode": True}}
    url = fleet.children["prefill-0"].url + "/v1/completions"
    async with fleet.http.post(url, json=leg, headers={**fleet.auth, "x-triptych-tenant": tenant}) as answer:
        said = await answer.json()
        assert answer.status == 200, said
        return said["kv_transfer_params"], cached(said["usage"])


async def refused_by(fleet: Fleet, name: str) -> int:
    """How often an instance has refused a frame, a link or a ticket."""
    state = await fleet.state(name)
    assert state is not None
    return state.load.handover.refused


async def test_logs_hold_no_text_no_key_and_no_token(fleet: Fleet, target: Target) -> None:
    """Requests that are served, refused, cut off and forged, all with a word that is then looked for."""
    bodies = [
        (json.dumps({**TEXT, "prompt": MARKER, "echo": True}).encode(), "/v1/completions"),
        (json.dumps({**TEXT, "prompt": MARKER, "n": 99}).encode(), "/v1/completions"),
        (json.dumps({**TEXT, "prompt": MARKER, MARKER: 1, "user": MARKER}).encode(), "/v1/completions"),
        (json.dumps({**TEXT, "model": MARKER, "prompt": MARKER}).encode(), "/v1/completions"),
        (json.dumps({**TEXT, "prompt": MARKER + "x" * 300_000}).encode(), "/v1/completions"),
        (b'{"prompt": "' + MARKER.encode(), "/v1/completions"),
        (b'{"prompt": "%b", "prompt": "%b"}' % (MARKER.encode(), MARKER.encode()), "/v1/completions"),
        (json.dumps({**TEXT, "messages": [{"role": MARKER, "content": MARKER}]}).encode(), "/v1/chat/completions"),
        (json.dumps({**TEXT, "messages": [{"role": "user", "content": MARKER}]}).encode(), "/v1/chat/completions"),
        (json.dumps({"prompt": MARKER}).encode(), "/tokenize"),
        (json.dumps({"tokens": MARKER}).encode(), "/detokenize"),
    ]
    for body, path in bodies:
        status, answer = await post(fleet.http, target, body, path=path)
        if status != 200:
            one_error(status, answer, (400, 404))
            assert MARKER.encode() not in answer or b"stands twice" in answer
    for header in ("x-request-id", "x-triptych-tenant", "user-agent", "cookie", "authorization", "content-encoding"):
        sent = {**target.headers, header: f"Bearer {MARKER} !"}
        async with fleet.http.post(target.child.url + "/v1/completions", json={}, headers=sent) as answer_:
            await answer_.read()
    async with fleet.http.get(f"{target.child.url}/v1/models/{MARKER}?{MARKER}", headers=target.headers) as answer_:
        assert answer_.status == 404
    sent = {**target.headers, "x-request-id": f"the-last-{target.name}"}
    async with fleet.http.post(target.child.url + "/v1/completions", data=b"{", headers=sent) as answer_:
        assert answer_.status in (400, 415)

    async def written() -> bool:
        return f"the-last-{target.name}" in target.child.log.read_text()

    await fleet.until(written, what="the log has the last request", deadline_s=10)
    for child in fleet.children.values():
        log = child.log.read_text()
        assert log, child.name
        for secret in (MARKER, fleet.token, *KEYS.values()):
            assert secret not in log, (child.name, secret)
        for line in log.splitlines():
            assert isinstance(json.loads(line), dict), "one object a line, whatever a client sends"


class TestWhatIsOursFromAClient:
    async def test_headers_have_no_effect(self, fleet: Fleet, target: Target) -> None:
        ours = {
            "x-triptych-epoch": "99",
            "x-triptych-deadline-ms": "0",
            "x-triptych-seed": "x",
            "x-triptych-tenant": "bob",
            "x-triptych-created": "5",
            "x-triptych-ledger": "1",
            "x-triptych-attempt": "-1",
            "x-triptych-prefix": "x" * 4000,
            "x-triptych-generation": "other",
        }
        body = {**TEXT, "prompt": prompt_of("head"), "seed": 5, "stream": True}
        plain = await ask(fleet.http, target.child.url, body, headers=target.headers)
        told = await ask(fleet.http, target.child.url, body, headers={**target.headers, **ours})
        assert (told.status, told.text, told.finish_reason) == (200, plain.text, plain.finish_reason)
        status, answer = await post(fleet.http, target, json.dumps({**TEXT, "prompt": "a"}).encode(), **ours)
        assert (status, json.loads(answer)["created"] == 5) == (200, False)

    @pytest.mark.parametrize("member", ["kv_transfer_params", "triptych", "kv\\u005ftransfer_params"])
    async def test_members_are_refused(self, fleet: Fleet, target: Target, member: str) -> None:
        values = ({"do_remote_decode": True}, {"encode": True}, {"do_remote_prefill": True, "remote_host": "10.0.0.1"})
        for value in values:
            body = f'{{"prompt": "hello", "{member}": {json.dumps(value)}}}'.encode()
            status, answer = await post(fleet.http, target, body)
            one_error(status, answer, (400, 403))

    async def test_forged_tickets_are_never_dialled(self, fleet: Fleet) -> None:
        """Even with the token, an address that discovery does not list is only compared."""
        ticket = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": "prefill-0",
            "remote_request_id": "r",
            "remote_host": "127.0.0.1",
            "remote_port": 9,
            "remote_num_tokens": 5,
            "remote_blocks_expiry_time": 0.0,
            "lease": "0" * 32,
            "ttl_ms": 1000,
            "fingerprint": "0" * 16,
        }
        target = Target("decode-0", fleet.children["decode-0"], fleet.auth)
        for change in ({}, {"remote_host": "169.254.169.254"}, {"remote_host": "a/../b"}, {"lease": "../x"}):
            body = json.dumps({**TEXT, "prompt": "hello", "kv_transfer_params": {**ticket, **change}}).encode()
            status, answer = await post(fleet.http, target, body)
            one_error(status, answer, (400, 409))


class TestTenants:
    async def test_never_share_cached_blocks(self, fleet: Fleet) -> None:
        """Two prompts at once, which are not handed over, so that what is cached was computed for somebody before."""
        body = {**TEXT, "prompt": [prompt_of("one", 40), prompt_of("two", 40)]}
        found, texts = {}, set()
        for turn in range(6):
            for tenant in ("alice", "bob"):
                told = {**key_of(tenant), "x-triptych-tenant": "alice"}
                answer = await ask(fleet.http, fleet.router.url, body, headers=told)
                found[turn, tenant] = cached(answer.usage)
                texts.add(answer.text)
        assert (found[0, "alice"], found[0, "bob"]) == (0, 0), "the second tenant has nothing of the first"
        assert all(max(found[turn, tenant] for turn in range(6)) > 0 for tenant in ("alice", "bob")), "its own it has"
        assert len(texts) == 1

    async def test_never_share_blocks_by_a_hand_over(self, fleet: Fleet) -> None:
        """Neither on the instance that prefills, nor by showing the ticket of another tenant."""
        body = {**TEXT, "prompt": prompt_of("handed")}
        cached_by, texts = {}, set()
        for tenant, owner in (("alice", "alice"), ("bob", "alice"), ("bob", "bob"), ("alice", "alice")):
            ticket, cached_by[tenant, owner] = await prefilled(fleet, body, owner)
            before = await refused_by(fleet, "prefill-0")
            leg = {**body, "kv_transfer_params": ticket}
            sent = {**fleet.auth, "x-triptych-tenant": tenant}
            answer = await ask(fleet.http, fleet.children["decode-0"].url, leg, headers=sent)
            texts.add(answer.text)
            foreign = tenant != owner
            assert (answer.status, await refused_by(fleet, "prefill-0") > before) == (200, foreign)
        assert len(texts) == 1
        assert cached_by["bob", "bob"] == 0
        assert cached_by["alice", "alice"] > 0

    async def test_keep_prompts_apart_within_one_by_a_salt(self, fleet: Fleet) -> None:
        body = {**TEXT, "prompt": prompt_of("salt")}
        engine = fleet.children["mixed-0"].url
        first = await ask(fleet.http, engine, {**body, "cache_salt": "a"})
        other = await ask(fleet.http, engine, {**body, "cache_salt": "b"})
        again = await ask(fleet.http, engine, {**body, "cache_salt": "a"})
        assert [cached(answer.usage) for answer in (first, other)] == [0, 0]
        assert cached(again.usage) > 0

    async def test_never_share_embeddings(self, fleet: Fleet) -> None:
        """The same picture of two tenants is embedded twice, of one tenant once."""
        picture = image_part(png(9, 7, 33))
        engine = fleet.children["mixed-0"]
        body = {**TEXT, "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "what"}]}]}
        runs = []
        for tenant in ("alice", "alice", "bob"):
            sent = {**fleet.auth, "x-triptych-tenant": tenant}
            answer = await ask(fleet.http, engine.url, body, path="/v1/chat/completions", headers=sent)
            assert answer.status == 200, answer
            state = await fleet.state("mixed-0")
            assert state is not None
            runs.append(state.load.handover.encoder_runs)
        assert runs[1] == runs[0]
        assert runs[2] == runs[0] + 1
