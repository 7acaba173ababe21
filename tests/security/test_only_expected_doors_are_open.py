"""What listens, who may call what, what refuses to start, and who may read what is written."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.asking import ask
from fakes.fleet import Fleet, fleet_in
from fakes.hostile import KEYS, Target, key_of, listening, one_error, post

pytestmark = pytest.mark.process

LOOPBACK = "0100007F"
BODY = {"model": "sim", "prompt": "hello", "max_tokens": 1}
GOLDEN = """\
GET /health: none=in wrong=in token=in key=in
GET /instance/events: none=401 wrong=401 token=401 key=404
GET /instance: none=401 wrong=401 token=401 key=404
GET /livez: none=in wrong=in token=in key=in
GET /metrics: none=401 wrong=401 token=in key=in
GET /nowhere: none=401 wrong=401 token=401 key=404
GET /readyz: none=in wrong=in token=in key=in
GET /v1/models/sim: none=401 wrong=401 token=401 key=in
GET /v1/models: none=401 wrong=401 token=401 key=in
GET /version: none=401 wrong=401 token=in key=in
POST /detokenize: none=401 wrong=401 token=401 key=in
POST /instance/role: none=401 wrong=401 token=401 key=404
POST /tokenize: none=401 wrong=401 token=401 key=in
POST /v1/chat/completions: none=401 wrong=401 token=401 key=in
POST /v1/completions: none=401 wrong=401 token=401 key=in
"""
"""The router with keys; a path that needs none stands nowhere else. The engine's list is in tests/engine_server."""


async def test_each_program_listens_on_its_own_ports_of_loopback_only(fleet: Fleet) -> None:
    for child in fleet.children.values():
        ports = {child.http_port, child.kv_port} - {0}
        assert listening((child.pid, *child.core_pids())) == {(LOOPBACK, port) for port in ports}


async def test_who_may_call_what_at_the_router_is_as_listed(fleet: Fleet) -> None:
    callers = {
        "none": {},
        "wrong": {"authorization": f"Bearer {KEYS['alice']}x"},
        "token": fleet.auth,
        "key": key_of("alice"),
    }
    lines = []
    for method, _, path in (line.split(":")[0].partition(" ") for line in GOLDEN.splitlines()):
        found = []
        for name, shown in callers.items():
            sent = {**shown, "content-type": "application/json"}
            async with fleet.http.request(method, fleet.router.url + path, headers=sent) as answer:
                refused = answer.status in (401, 403, 404)
                found.append(f"{name}={answer.status if refused else 'in'}")
        lines.append(f"{method} {path}: {' '.join(found)}")
    assert "\n".join(lines) + "\n" == GOLDEN


async def test_no_other_spelling_of_a_path_or_a_key_opens_it(fleet: Fleet) -> None:
    url = fleet.router.url
    for path in (
        "//v1/models",
        "/v1//models",
        "/livez/../v1/models",
        "/health/%2e%2e/v1/models",
        "/V1/models",
        "/metrics/",
    ):
        async with fleet.http.get(url + path) as answer:
            assert answer.status in (401, 404), path
    key = KEYS["alice"]
    for shown in (key, f"Basic {key}", f"bearer{key}", "Bearer", f"Bearer {key[:-1]}", f"Bearer {key},{key}"):
        async with fleet.http.get(f"{url}/v1/models", headers={"authorization": shown}) as answer:
            one_error(answer.status, await answer.read(), (401,))
    for header in ("x-api-key", "api-key", "cookie", "proxy-authorization"):
        async with fleet.http.get(f"{url}/v1/models", headers={header: key}) as answer:
            assert answer.status == 401


def refuses(module: str, *flags: str) -> str:
    """What a program says on stderr when it refuses to start."""
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


class TestRefusalsToStart:
    @pytest.mark.parametrize("text", ["", "fifteen-letters", "\x00" * 32])
    def test_with_a_secret_that_is_none(self, tmp_path: Path, text: str) -> None:
        token = tmp_path / "token"
        token.write_text(text)
        found = f"local:{tmp_path}/instances"
        flags = ("--token-file", str(token), "--port", "0")
        for said in (
            refuses("triptych_engine.main", "--sim", *flags),
            refuses("triptych_router.main", "--discovery", found, *flags),
        ):
            assert "--token-file must hold one printable word" in said
            assert not text.strip() or text not in said

    def test_with_a_secret_that_is_missing(self, tmp_path: Path) -> None:
        flags = ("--token-file", str(tmp_path / "none"))
        assert "--token-file" in refuses("triptych_engine.main", "--sim", *flags)
        assert "--token-file" in refuses("triptych_router.main", "--discovery", f"local:{tmp_path}/d", *flags)

    @pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1.example"])
    def test_open_to_others_without_what_opens_it(self, tmp_path: Path, host: str) -> None:
        token = tmp_path / "token"
        token.write_text("a-service-token-of-the-tests")
        discovery = ("--discovery", f"local:{tmp_path}/instances", "--port", "0")
        assert "needs --token-file" in refuses("triptych_engine.main", "--sim", "--host", host)
        assert "--insecure is for loopback only" in refuses(
            "triptych_engine.main", "--sim", "--host", host, "--token-file", str(token), "--insecure"
        )
        said = refuses("triptych_router.main", *discovery, "--host", host, "--token-file", str(token))
        assert "needs --api-keys" in said
        assert "--insecure is for loopback only" in refuses(
            "triptych_router.main", *discovery, "--host", host, "--insecure"
        )

    @pytest.mark.parametrize("text", ["# nothing\n", "alice:plain-text-key\n"])
    def test_with_keys_that_are_none(self, tmp_path: Path, text: str) -> None:
        keys = tmp_path / "keys"
        keys.write_text(text)
        said = refuses(
            *("triptych_router.main", "--discovery", f"local:{tmp_path}/d", "--port", "0", "--insecure"),
            *("--api-keys", str(keys)),
        )
        assert "--api-keys" in said
        assert "plain-text-key" not in said


async def test_files_of_the_programs_are_their_owners_alone(fleet: Fleet) -> None:
    found = fleet.directory / "instances"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    records = list(found.iterdir())
    assert len(records) == 3
    for path in records:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert fleet.token not in path.read_text()


def test_command_lines_and_environments_hold_no_secret(fleet: Fleet) -> None:
    for child in fleet.children.values():
        for pid in (child.pid, *child.core_pids()):
            for name in ("cmdline", "environ"):
                assert fleet.token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


async def test_checks_of_input_are_no_asserts(tmp_path: Path) -> None:
    """The same refusals from programs that run without asserts."""
    env = {"PYTHONOPTIMIZE": "1"}
    async with fleet_in(tmp_path) as own:
        engine = await own.start_engine("mixed-0", "mixed", env=env)
        target = Target("mixed-0", engine, {})
        bad = (
            (b'{"prompt": "a", "n": 0}', 400),
            (b'{"prompt": "a", "n": 1, "n": 2}', 400),
            (b'{"prompt": "a", "temperature": NaN}', 400),
            (b'{"prompt": [99999999]}', 400),
            (b'{"prompt": [-1]}', 400),
            (b'{"prompt": ""}', 400),
            (b'{"prompt": "\\ud800"}', 400),
            (b'{"prompt": "<|image|>"}', 400),
            (b'{"prompt": "a", "max_tokens": 9999999}', 400),
            (b'{"prompt": "a", "kv_transfer_params": {"do_remote_decode": true}}', 403),
            (b"[" * 10_000, 400),
        )
        for body, status in bad:
            one_error(*await post(own.http, target, body), (status,))
        async with own.http.post(f"{engine.url}/instance/role", json={"role": "decode", "epoch": -1}) as answer:
            one_error(answer.status, await answer.read(), (401,))
        async with own.http.post(
            f"{engine.url}/instance/role", json={"role": "decode", "epoch": -1}, headers=own.auth
        ) as answer:
            one_error(answer.status, await answer.read(), (400,))
        assert (await ask(own.http, engine.url, BODY)).status == 200
        await own.settled()
