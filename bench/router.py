"""Router: requests and streamed events per CPU second beside nginx, on the same mock.

32 connections. Not streamed: prompts of 200 bytes and 32 KiB, answers of 480 bytes. Streamed: bursts of 64 events of
190 bytes. Interleaved rounds. Only the CPU time of the process under test counts, so the mock and the load beside
it on the same cores do not.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from aiohttp.test_utils import unused_port

from bench._router_mock import EVENTS
from bench.report import Row

CONNECTIONS = 32
ROUNDS = 3
ROUND_S = 3.0
START_S = 20.0


@dataclass(frozen=True)
class Load:
    """One kind of load.

    Attributes:
        name: In the rows.
        prompt_bytes: Of each request.
        stream: The answer is a burst of events.
        unit: What is counted.
        counts: How many of it a request is.
        known: The ratio to nginx that plain aiohttp has.
    """

    name: str
    prompt_bytes: int
    stream: bool
    unit: str
    counts: int
    known: str


LOADS = (
    Load("prompts of 200 B", 200, False, "req/CPU-s", 1, "0.13 for plain aiohttp"),
    Load("prompts of 32 KiB", 32 * 1024, False, "req/CPU-s", 1, "0.17 for plain aiohttp"),
    Load("bursts of 64 events", 200, True, "event/CPU-s", EVENTS, "0.80 for plain aiohttp, which splits no events"),
)
_NGINX = """
daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{ access_log off; client_max_body_size 64m; client_body_buffer_size 128k; keepalive_requests 1000000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream mock {{ server 127.0.0.1:{mock}; keepalive 512; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://mock; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""


def run() -> list[Row]:
    """The rows; without nginx only the router's own."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "token").write_text("a-token-of-the-benchmark")
        _, mock_port = stack.enter_context(_program("bench._router_mock", str(folder / "d")))
        flags = ("--discovery", f"local:{folder}/d", "--token-file", str(folder / "token"), "--port", "0")
        router, port = stack.enter_context(_program("triptych_router.main", *flags))
        targets = {"router": (router, port)}
        if shutil.which("nginx") is None:
            print("nginx is not installed: no comparison (apt-get install nginx-light)", file=sys.stderr)
        else:
            targets["nginx"] = stack.enter_context(_nginx(folder, mock_port))
        measured = asyncio.run(_measure(targets))
        return _rows(measured)


def _rows(measured: dict[tuple[str, str], list[float]]) -> list[Row]:
    units = {load.name: load.unit for load in LOADS}
    rows = [Row(f"{name}, {load}", samples, units[load]) for (name, load), samples in measured.items()]
    for load in LOADS:
        ours, theirs = measured[("router", load.name)], measured.get(("nginx", load.name))
        if theirs:
            ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            rows.append(Row(f"router ÷ nginx, {load.name}", ratios, "", load.known))
    return rows


async def _measure(targets: dict[str, tuple[subprocess.Popen[str], int]]) -> dict[tuple[str, str], list[float]]:
    measured: dict[tuple[str, str], list[float]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        for _, port in targets.values():
            await _answers(session, port)
        for _ in range(ROUNDS):
            for load in LOADS:
                for name, (process, port) in targets.items():
                    figure = await _round(session, process, port, load)
                    measured.setdefault((name, load.name), []).append(figure)
    return measured


async def _round(session: aiohttp.ClientSession, process: subprocess.Popen[str], port: int, load: Load) -> float:
    """What the load counts per CPU second of the process."""
    prompt = "word " * (load.prompt_bytes // 5)
    body = json.dumps({"model": "", "prompt": prompt, "max_tokens": EVENTS, "stream": load.stream}).encode()
    url, served = f"http://127.0.0.1:{port}/v1/completions", 0
    loop = asyncio.get_running_loop()
    end_s = loop.time() + ROUND_S
    before = psutil.Process(process.pid).cpu_times()

    async def ask() -> None:
        nonlocal served
        while loop.time() < end_s:
            async with session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
                whole = await answer.read()
                answer.raise_for_status()
                if load.stream and whole.count(b"data: ") != EVENTS + 1:
                    raise ValueError("the stream has lost events")
                served += load.counts

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    after = psutil.Process(process.pid).cpu_times()
    return served / (after.user + after.system - before.user - before.system)


async def _answers(session: aiohttp.ClientSession, port: int) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                async with session.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "x"}) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


@contextmanager
def _program(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A Python program and the port that its first line tells."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            said = json.loads(process.stdout.readline() if process.stdout else "0")
            yield process, said["http_port"] if isinstance(said, dict) else said
        finally:
            process.kill()


@contextmanager
def _nginx(folder: Path, mock_port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = unused_port()
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, mock=mock_port, port=port))
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], text=True) as process:
        try:
            yield process, port
        finally:
            process.kill()
