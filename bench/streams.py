"""What 200 streams cost the step: the p99 step of 200 running sequences, streamed by HTTP and in a bare core.

The same PyTorch core (demo model, one thread) computes the same 200 sequences in both cases and logs its steps;
once its tokens go nowhere, once the server turns each of them into an event of one of 200 open streams, which a
client process of its own reads. Client, server and core share the machine's cores.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from bench.report import Row
from triptych_contract.codec import encode_json
from triptych_contract.sampling import SamplingParams
from triptych_engine.core.config import CoreConfig
from triptych_engine.demo import demo_model_dir
from triptych_engine.messages import Deltas, Ready, Submit
from triptych_engine.server.supervise import CoreProcess

STREAMS = 200
OUTPUT_TOKENS = 160
SETTLING_STEPS = 30
RUNS = 5
LIMIT_S = 300.0
MAX_CONTEXT = 512
KV_BLOCKS = 1600
PROMPT = list(range(300, 332))


def run() -> list[Row]:
    """p99 of both, run in turns, and their ratio."""
    bare, streamed, events = [], [], []
    for _ in range(RUNS):
        bare.append(_p99_ms(asyncio.run(_bare())))
        steps, rate = asyncio.run(_streamed())
        streamed.append(_p99_ms(steps))
        events.append(rate)
    ratios = [with_streams / alone for with_streams, alone in zip(streamed, bare, strict=True)]
    return [
        Row(f"p99 step of {STREAMS} sequences, bare core", bare, "ms"),
        Row(f"p99 step with {STREAMS} streams", streamed, "ms"),
        Row("events a second and stream", events, "1/s", "about 20"),
        Row("p99 step with streams, over bare", ratios, "ratio", "at most 1.1"),
    ]


def _p99_ms(steps: list[float]) -> float:
    ordered = sorted(steps)
    return ordered[int(len(ordered) * 0.99)] * 1e3


def _steps(log: Path) -> list[float]:
    """Seconds of the steps in which all sequences decoded, without the first ones."""
    said = [json.loads(line) for line in log.read_text().splitlines() if '"step"' in line]
    full = [
        line["seconds"] for line in said if line.get("event") == "step" and line["rows"] == line["tokens"] == STREAMS
    ]
    return full[SETTLING_STEPS:]


async def _bare() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "core.log"
        saved = os.dup(2)
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 2)
            try:
                core = await CoreProcess.start(
                    CoreConfig(
                        kind="torch",
                        model_dir=str(demo_model_dir()),
                        threads=1,
                        kv_blocks=KV_BLOCKS,
                        max_context=MAX_CONTEXT,
                        log_level="debug",
                    )
                )
            finally:
                os.dup2(saved, 2)
                os.close(saved)
        async with asyncio.timeout(LIMIT_S):
            await _generate(core)
        await core.stop()
        return _steps(log)


async def _generate(core: CoreProcess) -> None:
    ends = 0
    async for message in core.messages():
        if isinstance(message, Ready):
            for number in range(STREAMS):
                core.send(_submit(number))
        if isinstance(message, Deltas):
            ends += sum(item.finish_reason is not None for item in message.items)
            if ends == STREAMS:
                return


def _submit(number: int) -> Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    return Submit(id=str(number), token_ids=[*PROMPT, 400 + number], sampling=sampling, chain_root=bytes(32))


async def _streamed() -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        log, token = Path(folder) / "engine.log", Path(folder) / "token"
        token.write_text(secrets.token_hex(16))
        with log.open("wb") as stream:
            engine = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "triptych_engine.main", "--model", str(demo_model_dir())),
                *("--served-name", "demo", "--role", "mixed", "--threads", "1", "--max-context", str(MAX_CONTEXT)),
                *("--kv-blocks", str(KV_BLOCKS), "--log-level", "debug", "--token-file", str(token)),
                "--exit-with-stdin",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stream,
            )
        assert engine.stdin is not None
        assert engine.stdout is not None
        try:
            url = f"http://127.0.0.1:{json.loads(await engine.stdout.readline())['http_port']}"
            await _until_ready(url)
            rate = await _read_elsewhere(url)
        finally:
            engine.stdin.close()
            await engine.wait()
        return _steps(log), rate


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/readyz") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


async def _read_elsewhere(url: str) -> float:
    """Events a second and stream, as the client process counts them."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.streams", url, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(LIMIT_S):
        said, _ = await client.communicate()
    return float(said)


async def _client(url: str) -> float:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        rates = await asyncio.gather(*(_stream(session, url, number) for number in range(STREAMS)))
    return sum(rates) / len(rates)


async def _stream(session: aiohttp.ClientSession, url: str, number: int) -> float:
    body = {
        "model": "demo",
        "prompt": [*PROMPT, 400 + number],
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    first_s, events = 0.0, 0
    headers = {"content-type": "application/json"}
    async with session.post(f"{url}/v1/completions", data=encode_json(body), headers=headers) as answer:
        answer.raise_for_status()
        async for chunk in answer.content.iter_any():
            events += chunk.count(b"data: ")
            first_s = first_s or time.monotonic()
    return events / (time.monotonic() - first_s)


if __name__ == "__main__":
    print(asyncio.run(_client(sys.argv[1])))
