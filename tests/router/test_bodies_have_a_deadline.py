"""A body that does not arrive is a 408 on every path that reads one."""

import pytest

from fakes.fake_engine import FakeEngine
from fakes.hostile import one_error, send_raw
from triptych_contract.roles import Role


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_a_body_that_stops_half_way_is_refused(bench, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych_router.api.body.BODY_S", 0.2)
    async with bench(FakeEngine("m", Role.MIXED)) as b:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
        reply = await send_raw(b.router.port, head.encode() + b'{"prompt": ')
        assert one_error(reply.status, reply.body, (408,)) == "request_timeout"
