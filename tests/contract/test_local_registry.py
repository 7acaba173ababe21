"""Discovery in a directory: a record lives exactly as long as its writer, and nothing else in there is believed."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from triptych_contract.codec import encode_json
from triptych_contract.instance import InstanceRecord
from triptych_contract.registry import LocalRegistry
from triptych_contract.registry.local import MAX_RECORD_BYTES, STALE_AGE_S

DEADLINE_S = 10.0

WRITER = """
import asyncio, sys
from pathlib import Path
from triptych_contract.instance import InstanceRecord
from triptych_contract.registry import LocalRegistry

async def main(directory, name, incarnation):
    record = InstanceRecord(name, incarnation * 32, "laptop", "127.0.0.1", 8001, 9001)
    held = await LocalRegistry(Path(directory)).register(record)
    print("registered", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await held.withdraw()
    print("withdrawn", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def record(name, *, incarnation="0"):
    return InstanceRecord(name, incarnation * 32, "laptop", "127.0.0.1", 8001, 9001)


@contextmanager
def writer(directory, name, *, incarnation="1"):
    """Another process that has registered a record."""
    command = [sys.executable, "-c", WRITER, str(directory), name, incarnation]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"registered\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "discovery"


@pytest.fixture
def registry(directory):
    return LocalRegistry(directory, watch_interval_s=0.01)


def plant(directory: Path, name: str, data: bytes, *, mode: int = 0o600) -> Path:
    path = directory / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


@contextmanager
def locked(path):
    """Somebody alive holds the lock of a file, so that it passes for a record of a living writer."""
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


async def next_ids(watch):
    async with asyncio.timeout(DEADLINE_S):
        return [found.id for found in await anext(watch)]


@pytest.mark.process
async def test_a_record_of_another_process_is_seen_and_its_withdrawal_too(directory, registry):
    with writer(directory, "other") as process:
        assert [found.id for found in await registry.snapshot()] == ["other"]
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"withdrawn\n"
        assert await registry.snapshot() == ()
    assert list(directory.iterdir()) == []


@pytest.mark.process
async def test_a_killed_writer_takes_its_record_with_it(directory, registry):
    with writer(directory, "other") as process:
        watch = registry.watch()
        assert await next_ids(watch) == ["other"]
        process.send_signal(signal.SIGKILL)
        assert await next_ids(watch) == []
        await watch.aclose()


@pytest.mark.process
async def test_a_stopped_writer_keeps_its_record(directory, registry):
    with writer(directory, "other") as process:
        process.send_signal(signal.SIGSTOP)
        assert len(await registry.snapshot()) == 1
        process.send_signal(signal.SIGCONT)


@pytest.mark.process
async def test_the_later_of_two_processes_with_one_id_wins_and_survives_the_death_of_the_earlier(directory, registry):
    with writer(directory, "same") as earlier:
        held = await registry.register(record("same", incarnation="2"))
        earlier.kill()
        earlier.wait()
        assert [found.incarnation for found in await registry.snapshot()] == ["2" * 32]
        await held.withdraw()
    assert await registry.snapshot() == ()


FOREIGN = {
    "empty": b"",
    "torn": encode_json(record("x"))[:40],
    "not JSON": b"\x00\xff\x00",
    "another object": b"{}",
    "under another name": encode_json(record("y")),
    "malformed": encode_json(record("x")).replace(b"127.0.0.1", b"http://evil/"),
    "too long": encode_json(record("x"))[:-1] + b', "model": "' + b"x" * MAX_RECORD_BYTES + b'"}',
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
async def test_a_corrupt_record_is_left_out_although_its_writer_lives(directory, registry, data):
    held = await registry.register(record("sound"))
    with locked(plant(directory, "x.instance.json", data)):
        assert [found.id for found in await registry.snapshot()] == ["sound"]
    await held.withdraw()


async def test_a_locked_sound_file_is_what_a_record_is(directory, registry):
    path = plant(directory, "x.instance.json", encode_json(record("x")))
    assert await registry.snapshot() == ()
    with locked(path):
        assert await registry.snapshot() == (record("x"),)
    assert await registry.snapshot() == ()


async def test_links_pipes_folders_and_other_files_are_ignored_without_blocking(directory, registry, tmp_path):
    target = plant(tmp_path, "target", encode_json(record("link")))
    (directory / "link.instance.json").symlink_to(target)
    os.mkfifo(directory / "pipe.instance.json")
    (directory / "folder.instance.json").mkdir()
    plant(directory, "notes.txt", b"hello")
    plant(directory, ".hidden.instance.json", encode_json(record("hidden")))
    with locked(target):
        async with asyncio.timeout(DEADLINE_S):
            assert await registry.snapshot() == ()


async def test_a_registration_removes_old_files_of_dead_writers_and_nothing_else(directory, registry):
    held = await registry.register(record("alive"))
    old = [plant(directory, name, b"x") for name in (".gone.0.tmp", "gone.instance.json", "notes.txt")]
    for path in (*old, directory / "alive.instance.json"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * STALE_AGE_S))
    plant(directory, "young.instance.json", b"x")
    later = await registry.register(record("later"))
    names = {path.name for path in directory.iterdir()}
    assert names == {"alive.instance.json", "later.instance.json", "young.instance.json", "notes.txt"}
    await held.withdraw()
    await later.withdraw()


async def test_more_dead_files_than_the_bound_hide_no_living_record_once_they_are_old(directory, registry):
    for number in range(1100):
        path = plant(directory, f"a{number:04}.instance.json", b"")
        os.utime(path, (0, 0))
    held = await registry.register(record("z"))
    assert await registry.snapshot() == (record("z"),)
    await held.withdraw()


async def test_a_directory_locked_for_good_is_an_error_in_time_and_not_a_hang(directory, registry, monkeypatch):
    monkeypatch.setattr("triptych_contract.registry.local.DIRECTORY_LOCK_S", 0.05)
    held = await registry.register(record("a"))
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="locked"):
            await registry.register(record("b"))
        await held.withdraw()
    finally:
        os.close(descriptor)
    assert await registry.snapshot() == ()


def test_the_directory_is_made_for_its_owner_alone(directory, registry):
    assert registry is not None
    assert directory.stat().st_mode & 0o777 == 0o700


async def test_a_record_is_readable_by_its_owner_alone(directory, registry):
    held = await registry.register(record("a"))
    assert (directory / "a.instance.json").stat().st_mode & 0o777 == 0o600
    await held.withdraw()


async def test_a_directory_that_vanished_is_an_empty_set_for_readers_and_an_error_for_writers(directory, registry):
    directory.rmdir()
    assert await registry.snapshot() == ()
    with pytest.raises(FileNotFoundError):
        await registry.register(record("a"))


async def test_no_descriptor_is_left_after_withdrawals_and_failures(registry):
    before = psutil.Process().num_fds()
    for _ in range(5):
        await (await registry.register(record("a"))).withdraw()
        await registry.snapshot()
    assert psutil.Process().num_fds() == before
