"""Lines of requests: whole, in order, escaped, bounded, and never in a request's way."""

import asyncio
import json
import threading

import pytest

from fakes.fake_engine import until
from triptych_router.request_log import RequestLine, RequestLog


def line(number: int, *, model: str = "sim") -> RequestLine:
    return RequestLine(
        request_id=str(number),
        tenant="",
        model=model,
        route="decode=d",
        shape="local",
        reason="",
        attempts={"decode": 1},
        prompt_tokens=1,
        tokens=1,
        ttft_s=None,
        queued_s=0.0,
        seconds=0.5,
        outcome="ok",
        code="",
    )


class Sink:
    """What was written, and a gate that a test may keep shut."""

    def __init__(self) -> None:
        self.written = b""
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.open.wait(5)
        self.written += data

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(one) for one in self.written.decode("ascii").splitlines()]


async def test_lines_are_written_soon_in_order_and_the_last_ones_at_the_end() -> None:
    sink = Sink()
    log = RequestLog(sink.write, unix_s=lambda: 1_700_000_000.25)
    log.add(line(1))
    log.add(line(2))
    await until(lambda: len(sink.lines()) == 2, what="the lines are written by themselves")
    log.add(line(3))
    log.close()
    assert [one["request_id"] for one in sink.lines()] == ["1", "2", "3"]
    assert (sink.lines()[0]["time"], sink.lines()[0]["event"]) == ("2023-11-14T22:13:20.250Z", "request")


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "caf\u00e9", "\x9b31m", "\u2028", '"}{"event":"forged'])
async def test_no_name_forges_a_line_or_drives_a_terminal(name: str) -> None:
    sink = Sink()
    log = RequestLog(sink.write)
    log.add(line(1, model=name))
    log.close()
    assert [one["model"] for one in sink.lines()] == [name]
    assert sink.written.count(b"\n") == 1
    assert all(32 <= byte < 127 or byte == 10 for byte in sink.written)


async def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    sink = Sink()
    sink.open.clear()
    log = RequestLog(sink.write, max_waiting_bytes=1000)
    log.add(line(0))
    await until(sink.entered.is_set, what="the first line is being written")
    for number in range(1, 100):
        log.add(line(number))
    await asyncio.sleep(0)
    sink.open.set()
    await until(lambda: len(sink.lines()) > 1, what="the others follow")
    log.close()
    lines = sink.lines()
    kept = [one for one in lines if one["event"] == "request"]
    dropped = [one["count"] for one in lines if one["event"] == "request lines dropped"]
    assert len(kept) + sum(dropped) == 100  # type: ignore[arg-type]
    assert 2 <= len(kept) < 10


async def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    sink = Sink()
    failures = [OSError(28, "full")]

    def write(data: bytes) -> None:
        if failures:
            raise failures.pop()
        sink.write(data)

    log = RequestLog(write)
    log.add(line(1))
    await until(lambda: not failures, what="the first write fails")
    log.add(line(2))
    log.close()
    assert [one["request_id"] for one in sink.lines()] == ["2"]
