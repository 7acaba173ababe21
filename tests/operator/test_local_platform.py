"""Children as processes: argv, logs, drains, and programs that misbehave."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.services import service
from triptych_contract.clock import SystemClock
from triptych_operator.local_start import choose_engine, context_of, prepare
from triptych_operator.model_source import Folder, SourceFailed, Sources
from triptych_operator.platforms.commands import Commands, Programs, threads_for
from triptych_operator.platforms.last_words import LONGEST, LastWords
from triptych_operator.platforms.local import LocalPlatform
from triptych_operator.platforms.log_file import LogFile
from triptych_operator.snapshot import Component, ObservedChild
from triptych_operator.spec import LLMService
from triptych_operator.state_dir import AlreadyRunning, StateDirectory, services

DEADLINE_S = 20.0
TALKS = 'import sys; print(\'{"event":"listening","http_port":4711}\', flush=True); '


@dataclass
class Stage:
    """A platform whose engines run one Python program."""

    folder: Path
    program: str
    spec: str = "drainSeconds: 0"
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.commands = commands(self.folder, service(self.spec), [sys.executable, "-c", self.program])
        self.platform = LocalPlatform(
            commands=self.commands, logs=self.folder, port=0, clock=SystemClock(), wake=self.woken.set
        )

    @property
    def child(self) -> ObservedChild:
        return self.platform.observe()[0]

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not true():  # noqa: ASYNC110 - facts of processes have no event
                await asyncio.sleep(0.01)


def commands(folder: Path, wanted: LLMService, engine: list[str] | None = None) -> Commands:
    return Commands(
        service=wanted,
        model_dir=None,
        discovery=folder / "instances",
        token_file=folder / "token",
        threads=2,
        max_context=4096,
        programs=Programs(engine=engine or ["engine"], router=["router"]),
    )


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Callable[[str], Stage]]:
    made: list[Stage] = []

    def make(program: str) -> Stage:
        made.append(Stage(tmp_path, program))
        return made[-1]

    yield make
    for one in made:
        await one.platform.close(at_once=True)


class TestArguments:
    def test_an_engine_boots_without_a_role_on_loopback_behind_the_token(self, tmp_path: Path) -> None:
        argv = commands(tmp_path, service("engine: {args: ['--kv-blocks', '64']}")).engine("engine-0", Component.ENGINE)
        assert argv == [
            *("engine", "--sim", "--served-name", "demo", "--instance-id", "engine-0"),
            *("--capable", "prefill,decode", "--threads", "2", "--max-context", "4096"),
            *("--host", "127.0.0.1", "--service", "demo", "--discovery", f"local:{tmp_path / 'instances'}"),
            *("--token-file", str(tmp_path / "token"), "--drain-s", "30", "--exit-with-stdin"),
            *("--kv-blocks", "64"),
        ]

    def test_an_encoder_can_only_encode(self, tmp_path: Path) -> None:
        argv = commands(tmp_path, service()).engine("encode-0", Component.ENCODE)
        assert argv[argv.index("--capable") + 1] == "encode"

    def test_the_router_gets_policy_queue_and_port(self, tmp_path: Path) -> None:
        wanted = service("router: {policy: RoundRobin, maxQueue: 7}")
        assert commands(tmp_path, wanted).router(8123)[:9] == [
            *("router", "--model", "demo", "--port", "8123", "--policy", "RoundRobin", "--max-queue", "7"),
        ]

    def test_environment_of_the_spec_reaches_engines_and_not_the_router(self, tmp_path: Path) -> None:
        built = commands(tmp_path, service("engine: {env: [{name: A, value: b}]}"))
        assert built.environment(Component.ENGINE) == {"OMP_NUM_THREADS": "2", "A": "b"}
        assert built.environment(Component.ROUTER) == {}

    @pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 1), (6, 2), (16, 5)])
    def test_cores_are_shared_out_and_nobody_gets_none(self, cores: int, threads: int) -> None:
        assert threads_for(service("encode: {}\nreplicas: 2"), cores) == threads

    @pytest.mark.parametrize(("allowed", "wanted"), [(0, 8192), (512, 512), (100_000, 8192)])
    def test_the_context_stays_within_what_the_model_can_do(self, allowed: int, wanted: int) -> None:
        assert context_of(service(), Folder(Path("/m"), allowed)) == wanted

    def test_the_simulated_engine_fetches_no_model(self, tmp_path: Path) -> None:
        def no_demo() -> Path:
            raise AssertionError

        settings = prepare(
            service(),
            engine="sim",
            sources=Sources(no_demo, tmp_path, {}),
            state=StateDirectory(tmp_path),
            port=0,
            source="x",
        )
        assert settings.commands.model_dir is None


class TestChoiceOfEngine:
    @pytest.mark.parametrize(
        ("spec", "wanted", "torch", "engine"),
        [
            ("", "auto", True, "torch"),
            ("", "auto", False, "sim"),
            ("", "sim", True, "sim"),
            ("engine: {profile: sim}", "auto", True, "sim"),
            ("engine: {profile: sim}", "torch", True, "torch"),
            ("engine: {profile: cpu}", "auto", True, "torch"),
            ("encode: {}", "sim", True, "sim"),
        ],
    )
    def test_the_wish_then_the_profile_then_what_is_installed(
        self, spec: str, wanted: str, torch: bool, engine: str
    ) -> None:
        assert choose_engine(service(spec), wanted=wanted, torch_installed=torch).engine == engine

    @pytest.mark.parametrize(
        ("spec", "wanted", "message"),
        [("", "torch", "PyTorch is not installed"), ("engine: {profile: cuda}", "auto", "--engine sim")],
    )
    def test_what_needs_torch_says_how_to_get_it(self, spec: str, wanted: str, message: str) -> None:
        with pytest.raises(SourceFailed, match=message):
            choose_engine(service(spec), wanted=wanted, torch_installed=False)

    def test_encode_is_not_promised_with_torch(self) -> None:
        with pytest.raises(SourceFailed, match="no vision model yet"):
            choose_engine(service("encode: {}"), wanted="auto", torch_installed=True)


@pytest.mark.process
class TestChildren:
    async def test_the_ready_line_tells_the_port_and_all_is_logged(self, stage: Callable[[str], Stage]) -> None:
        one = stage(TALKS + "print('to stderr', file=sys.stderr, flush=True); sys.stdin.read()")
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: one.platform.http_port("engine-0") == 4711)
        await one.until(lambda: "to stderr" in (one.folder / "engine-0.log").read_text())
        assert one.child.listened

    async def test_starting_a_living_child_changes_nothing(self, stage: Callable[[str], Stage]) -> None:
        one = stage(TALKS + "sys.stdin.read()")
        await one.platform.start("engine-0", Component.ENGINE)
        pid = one.child.pid
        await one.platform.start("engine-0", Component.ENGINE)
        assert (one.child.pid, one.child.starts) == (pid, 1)

    async def test_a_crash_wakes_the_operator_and_keeps_the_last_words(self, stage: Callable[[str], Stage]) -> None:
        one = stage("import sys; print('no memory left', file=sys.stderr); sys.exit(3)")
        await one.platform.start("engine-0", Component.ENGINE)
        await asyncio.wait_for(one.woken.wait(), DEADLINE_S)
        child = one.child
        assert (child.alive, child.exit_code, child.crashes, child.last_words) == (False, 3, 1, "no memory left")

    async def test_a_program_that_does_not_exist_counts_as_a_crash(self, tmp_path: Path) -> None:
        woken = asyncio.Event()
        built = commands(tmp_path, service(), [str(tmp_path / "nothing")])
        platform = LocalPlatform(commands=built, logs=tmp_path, port=0, clock=SystemClock(), wake=woken.set)
        await platform.start("engine-0", Component.ENGINE)
        await asyncio.wait_for(woken.wait(), DEADLINE_S)
        assert (platform.observe()[0].alive, platform.observe()[0].exit_code) == (False, 127)
        await platform.close()

    async def test_a_child_that_does_not_drain_is_killed(
        self, stage: Callable[[str], Stage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("triptych_operator.platforms.local.STOP_GRACE_S", 0.1)
        one = stage("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + TALKS + "sys.stdin.read()")
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: one.child.listened)
        await one.platform.stop("engine-0", at_once=False)
        await one.until(lambda: not one.child.alive)
        assert one.child.exit_code == -9

    async def test_the_reason_of_a_kill_is_kept_until_the_next_start(self, stage: Callable[[str], Stage]) -> None:
        one = stage(TALKS + "sys.stdin.read()")
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: one.child.listened)
        await one.platform.stop("engine-0", at_once=True, because="weights are broken")
        await one.until(lambda: not one.child.alive)
        assert (one.child.given_up, one.child.crashes) == ("weights are broken", 1)
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: one.child.listened)
        await one.platform.stop("engine-0", at_once=False)
        await one.until(lambda: not one.child.alive)
        assert one.child.given_up == ""

    async def test_a_line_without_end_does_not_fill_the_memory(self, stage: Callable[[str], Stage]) -> None:
        one = stage("import sys; sys.stdout.write('x' * 3_000_000)")
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: not one.child.alive)
        assert 3_000_000 <= (one.folder / "engine-0.log").stat().st_size < 3_000_100
        assert len(one.child.last_words) <= 400


class TestLastWords:
    @pytest.mark.parametrize(
        ("lines", "kept"),
        [
            ([b"Traceback:\n", b"MemoryError\n"], "MemoryError"),
            ([b"why\n", b'{"level": "info", "event": "request", "status": 200}\n', b"\n"], "why"),
            ([b'{"level": "warning", "event": "state stream lost"}\n'], ""),
            ([b'{"event": "listening", "http_port": 1}\n'], ""),
            (
                [b'{"time": "t", "level": "error", "event": "lost", "code": 3, "at": ["a"], "why": null}'],
                "lost (code=3)",
            ),
            ([b'{"level": "error", "event": "lost"}'], "lost"),
            ([b"{curly but no record", b""], "{curly but no record"),
            ([b"[1]"], "[1]"),
            ([b"\xff"], "\ufffd"),
        ],
    )
    def test_they_are_what_may_tell_why_a_child_ended(self, lines: list[bytes], kept: str) -> None:
        words = LastWords()
        for line in lines:
            words.hear(line)
        assert words.text == kept

    def test_they_are_short(self) -> None:
        words = LastWords()
        words.hear(b"x" * 1_000_000)
        assert words.text == "x" * LONGEST

    async def test_those_of_an_earlier_start_are_forgotten(self, stage: Callable[[str], Stage], tmp_path: Path) -> None:
        one = stage(
            "import os, sys\n"
            f"mark = {str(tmp_path / 'started')!r}\n"
            "first = not os.path.exists(mark)\n"
            "open(mark, 'w').close()\n"
            "print('broken', file=sys.stderr) if first else None\n"
            "sys.exit(3 if first else 4)"
        )
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: one.child.exit_code == 3)
        assert one.child.last_words == "broken"
        await one.platform.start("engine-0", Component.ENGINE)
        await one.until(lambda: one.child.exit_code == 4)
        assert one.child.last_words == ""


class TestLogFile:
    def test_a_full_log_becomes_the_older_one(self, tmp_path: Path) -> None:
        log = LogFile(tmp_path / "a.log", cap_bytes=100)
        for number in range(30):
            log.write(b"line %d" % number)
        log.close()
        newest, older = (tmp_path / "a.log"), (tmp_path / "a.log.1")
        assert newest.stat().st_size <= 100
        assert older.stat().st_size <= 100
        assert newest.read_text().endswith("line 29\n")
        assert {path.name for path in tmp_path.iterdir()} == {"a.log", "a.log.1"}

    def test_a_folder_that_is_gone_loses_lines_and_stops_nobody(self, tmp_path: Path) -> None:
        folder = tmp_path / "logs"
        folder.mkdir()
        log = LogFile(folder / "a.log", cap_bytes=10)
        log.write(b"first")
        (folder / "a.log").unlink()
        folder.rmdir()
        log.write(b"second line")
        log.write(b"third line")
        log.close()
        assert not folder.exists()


class TestStateDirectory:
    def test_the_holder_is_known_from_the_first_moment(self, tmp_path: Path) -> None:
        state = StateDirectory(tmp_path / "demo")
        assert state.holder() is None
        with state.held():
            assert state.holder() == os.getpid()
        assert state.holder() is None

    def test_a_new_holder_is_not_taken_for_the_one_before(self, tmp_path: Path) -> None:
        state = StateDirectory(tmp_path / "demo")
        with state.held():
            (state.path / "service.json").write_text("{}")
        with state.held():
            assert not (state.path / "service.json").exists()

    def test_a_name_is_held_once(self, tmp_path: Path) -> None:
        first, second = StateDirectory(tmp_path / "demo"), StateDirectory(tmp_path / "demo")
        with first.held():
            assert second.is_held()
            with pytest.raises(AlreadyRunning, match="stop it with: triptych down demo"), second.held():
                pass
        assert not second.is_held()

    def test_tokens_are_new_at_each_start_and_for_the_owner_alone(self, tmp_path: Path) -> None:
        state = StateDirectory(tmp_path / "demo")
        state.prepare()
        tokens = {state.mint_token(), state.mint_token()}
        assert len(tokens) == 2
        assert state.token() in tokens
        assert state.token_file.stat().st_mode & 0o777 == 0o600

    def test_a_broken_entry_counts_as_none(self, tmp_path: Path) -> None:
        state = StateDirectory(tmp_path / "demo")
        state.prepare()
        (state.path / "service.json").write_text("{")
        assert state.entry() is None

    def test_services_are_found_by_their_locks(self, tmp_path: Path) -> None:
        with StateDirectory(tmp_path / "b").held(), StateDirectory(tmp_path / "a").held():
            (tmp_path / "stray").mkdir()
            assert [state.path.name for state in services(tmp_path)] == ["a", "b"]
        assert services(tmp_path / "none") == []
