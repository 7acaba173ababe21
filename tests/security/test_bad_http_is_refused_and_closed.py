"""Bad HTTP on both ports that speak it: one error, the connection closed, and never two readings of one request."""

import asyncio
import json

import pytest

from fakes.fleet import Fleet
from fakes.hostile import TALKATIVE, Reply, Target, one_error, peak_of, send_raw

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("unharmed")]

BODY = b'{"model": "sim", "prompt": "hello", "max_tokens": 1}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def head(target: Target, *, start: bytes = b"POST /v1/completions HTTP/1.1", host: bytes = b"host: a\r\n") -> bytes:
    """A request's beginning, without the empty line at its end."""
    shown = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items()).encode()
    return start + b"\r\n" + host + b"content-type: application/json\r\n" + shown


def refused(reply: Reply, *wanted: int) -> None:
    """One error in our shape, and the end of the connection."""
    assert reply.closed
    assert b"content-type: application/json" in reply.head.lower(), reply
    assert not TALKATIVE.search(reply.head), reply
    one_error(reply.status, reply.body, wanted)


class TestFraming:
    @pytest.mark.parametrize(
        "framing",
        [
            pytest.param(LENGTH + CHUNKED + b"\r\n" + CHUNKS, id="a length and chunks"),
            pytest.param(CHUNKED + LENGTH + b"\r\n" + CHUNKS, id="chunks and a length"),
            pytest.param(LENGTH + b"content-length: 5\r\n\r\n" + BODY, id="two lengths"),
            pytest.param(LENGTH + LENGTH + b"\r\n" + BODY, id="one length twice"),
            pytest.param(b"content-length: +%d\r\n\r\n" % len(BODY) + BODY, id="a signed length"),
            pytest.param(b"content-length: -1\r\n\r\n" + BODY, id="a negative length"),
            pytest.param(b"content-length: 0x10\r\n\r\n" + BODY, id="a hexadecimal length"),
            pytest.param(b"content-length: " + b"9" * 40 + b"\r\n\r\n" + BODY, id="an endless length"),
            pytest.param(b"transfer-encoding: xchunked\r\n\r\n" + CHUNKS, id="an unknown encoding"),
            pytest.param(b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKS, id="chunks not last"),
            pytest.param(b"transfer-encoding : chunked\r\n\r\n" + CHUNKS, id="a space before the colon"),
            pytest.param(b"x\x00y: 1\r\n" + LENGTH + b"\r\n" + BODY, id="NUL in a name"),
            pytest.param(b"x: a\x00b\r\n" + LENGTH + b"\r\n" + BODY, id="NUL in a value"),
            pytest.param(b"x: a\rb\r\n" + LENGTH + b"\r\n" + BODY, id="a bare CR"),
            pytest.param(b"x: a\r\n folded\r\n" + LENGTH + b"\r\n" + BODY, id="a folded line"),
            pytest.param(b": empty\r\n" + LENGTH + b"\r\n" + BODY, id="no name"),
        ],
    )
    async def test_of_two_meanings_is_refused(self, fleet: Fleet, target: Target, framing: bytes) -> None:
        refused(await send_raw(target.child.http_port, head(target) + framing), 400)

    async def test_a_bare_line_feed_ends_no_line(self, fleet: Fleet, target: Target) -> None:
        request = (head(target) + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY
        refused(await send_raw(target.child.http_port, request), 400)

    async def test_two_hosts_are_refused(self, fleet: Fleet, target: Target) -> None:
        request = head(target, host=b"host: a\r\nhost: b\r\n") + LENGTH + b"\r\n" + BODY
        refused(await send_raw(target.child.http_port, request), 400)

    @pytest.mark.parametrize(
        "start",
        [b"GET /livez", b"GET", b"\x16\x03\x01\x02\x00", b"POST /v1/completions HTTP/9.9"],
        ids=["HTTP/0.9", "a word", "TLS", "a version"],
    )
    async def test_a_first_line_that_is_none_is_refused(self, fleet: Fleet, target: Target, start: bytes) -> None:
        refused(await send_raw(target.child.http_port, start + b"\r\nhost: a\r\n\r\n"), 400)

    async def test_broken_chunks_are_refused(self, fleet: Fleet, target: Target) -> None:
        for chunks in (b"zz\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"f" * 40 + b"\r\nabc"):
            reply = await send_raw(target.child.http_port, head(target) + CHUNKED + b"\r\n" + chunks)
            refused(reply, 400)

    async def test_floods_in_chunk_extensions_and_trailers_take_no_memory(self, fleet: Fleet, target: Target) -> None:
        start = head(target) + CHUNKED + b"\r\n"
        extension = b"%x;" % len(BODY) + b"a" * (1 << 20) + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
        trailers = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY) + b"x: y\r\n" * 10_000 + b"\r\n"
        for flood in (extension, trailers):
            with peak_of(target.child) as grown:
                reply = await send_raw(target.child.http_port, start + flood)
            assert grown[0] < 16 << 20
            assert reply.status in (200, 400, 431), reply


class TestHeaders:
    async def test_of_64_kib_or_ten_thousand_are_refused(self, fleet: Fleet, target: Target) -> None:
        for more in (b"x: " + b"a" * 65536 + b"\r\n", b"x" * 65536 + b": a\r\n", b"x: y\r\n" * 10_000):
            reply = await send_raw(target.child.http_port, head(target) + more + LENGTH + b"\r\n" + BODY)
            refused(reply, 400, 431)

    async def test_a_path_of_64_kib_is_refused(self, fleet: Fleet, target: Target) -> None:
        start = b"GET /" + b"a" * 65536 + b" HTTP/1.1"
        refused(await send_raw(target.child.http_port, head(target, start=start) + b"\r\n"), 400, 414, 431)

    async def test_an_upgrade_is_not_taken(self, fleet: Fleet, target: Target) -> None:
        upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: a\r\n"
        reply = await send_raw(target.child.http_port, head(target, start=b"GET /livez HTTP/1.1") + upgrade + b"\r\n")
        assert reply.status in (200, 400)

    @pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"OPTIONS", b"PUT", b"PATCH", b"BREW"])
    async def test_methods_that_no_route_has_are_refused(self, fleet: Fleet, target: Target, method: bytes) -> None:
        reply = await send_raw(
            target.child.http_port, head(target, start=method + b" /v1/completions HTTP/1.1") + b"\r\n"
        )
        one_error(reply.status, reply.body, (400, 404, 405))


class TestPipelines:
    async def test_are_answered_in_order_and_bounded(self, fleet: Fleet, target: Target) -> None:
        one = head(target, start=b"GET /livez HTTP/1.1") + b"\r\n"
        last = head(target, start=b"GET /livez HTTP/1.1") + b"connection: close\r\n\r\n"
        reply = await send_raw(target.child.http_port, one * 200 + last, until_end=True)
        whole = reply.head + b"\r\n\r\n" + reply.body
        assert reply.closed
        assert whole.count(b"HTTP/1.1 200") == 201

    async def test_a_second_request_in_a_body_is_never_read_as_one(self, fleet: Fleet, target: Target) -> None:
        smuggled = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
        body = b'{"model": "sim", "max_tokens": 1, "prompt": ' + json.dumps(smuggled.decode()).encode() + b"}"
        request = head(target) + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        reply = await send_raw(target.child.http_port, request)
        assert (reply.status, (reply.head + reply.body).count(b"HTTP/1.1")) == (200, 1)


class TestSlowness:
    async def test_clients_that_never_end_their_first_head_are_cut_off(self, fleet: Fleet) -> None:
        """With nothing, in the first line, in the headers, and a drop at a time; at both programs at once."""
        drops = (b"GET /livez HTTP/1.1\r\n", *(b"x: y\r\n" for _ in range(60)))
        manners = ((b"",), (b"POST /v1/comp",), (b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n",), drops)
        replies = await asyncio.gather(
            *(
                send_raw(fleet.children[name].http_port, *parts, pause_s=0.25, until_end=True, deadline_s=14)
                for name in ("router", "mixed-0")
                for parts in manners
            )
        )
        assert all(reply.closed for reply in replies), replies

    @pytest.mark.full
    async def test_clients_that_idle_after_an_answer_are_cut_off(self, fleet: Fleet, target: Target) -> None:
        request = head(target, start=b"GET /livez HTTP/1.1") + b"\r\nGET /li"
        assert (await send_raw(target.child.http_port, request, until_end=True, deadline_s=90)).closed
