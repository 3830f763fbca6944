"""The embedded Redis: found, started, attached to, adopted, brought back, and gone when its owner is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
import pytest_asyncio
from tests.support.need import need_redis62, need_redis70
from tests.support.wait import deadline, eventually

from tailrace.errors import ConfigError, LogUnavailable, UsageError
from tailrace.eventlog.embedded import EmbeddedRedis
from tailrace.eventlog.redis.connection import Connection
from tailrace.eventlog.redis.endpoint import Address

Make = Callable[..., EmbeddedRedis]
Call = Callable[..., Awaitable[Any]]

OWNER = """
import asyncio, sys
from tailrace.eventlog.embedded import EmbeddedRedis
async def main():
    redis = EmbeddedRedis(sys.argv[1])
    await redis.start()
    print(redis.pid, redis.owner, redis.url, flush=True)
    task = asyncio.create_task(redis.run())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    task.cancel()
    await redis.stop()
asyncio.run(main())
"""


@pytest_asyncio.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[EmbeddedRedis] = []

    def build(folder: Path | None = None, **options: str | None) -> EmbeddedRedis:
        made.append(EmbeddedRedis(folder or tmp_path / "data", binary=options.get("binary")))
        return made[-1]

    yield build
    for redis in made:
        await redis.stop()


@contextlib.asynccontextmanager
async def running(redis: EmbeddedRedis) -> AsyncIterator[None]:
    task = asyncio.create_task(redis.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def connected(redis: EmbeddedRedis) -> AsyncIterator[Call]:
    deadline = asyncio.get_running_loop().time() + 10
    connection = await Connection.open(Address.parse(redis.url).data, deadline=deadline)

    async def call(*words: str | int) -> Any:
        return _text(await connection.call(*words, deadline=asyncio.get_running_loop().time() + 10))

    try:
        yield call
    finally:
        connection.abort()


def _text(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_text(one) for one in reply]
    return reply.decode() if isinstance(reply, bytes) else reply


async def command(redis: EmbeddedRedis, *words: str | int) -> Any:
    async with connected(redis) as call:
        return await call(*words)


async def answers(redis: EmbeddedRedis) -> bool:
    with contextlib.suppress(LogUnavailable):
        return bool(await command(redis, "PING") == "PONG")
    return False


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def socket_of(redis: EmbeddedRedis) -> Path:
    return Path(unquote(redis.url.removeprefix("unix://")))


async def other_process(folder: Path) -> tuple[asyncio.subprocess.Process, int, bool]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(folder), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with deadline(10):
        pid, owner, _ = (await process.stdout.readline()).split()
    return process, int(pid), owner == b"True"


async def ended(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    async with deadline(10):
        await process.wait()


@pytest.mark.parametrize("binary", [need_redis62, need_redis70])
async def test_data_is_found_again_after_a_clean_stop(make: Make, binary: Callable[[], str]) -> None:
    redis = make(binary=binary())
    await redis.start()
    await command(redis, "XADD", "s", "1-1", "a", "1")
    address = redis.url
    await redis.stop()

    again = make(binary=binary())
    await again.start()

    assert await command(again, "XLEN", "s") == 1
    assert again.url == address


async def test_settings_keep_acknowledged_data(make: Make) -> None:
    redis = make()
    await redis.start()

    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
    for name, value in wanted.items():
        assert await command(redis, "CONFIG", "GET", name) == [name, value]
    assert int((await command(redis, "CONFIG", "GET", "maxmemory"))[1]) >= 256 << 20


async def test_socket_is_private_short_and_removed_at_the_end(make: Make, tmp_path: Path) -> None:
    redis = make(tmp_path / ("long" * 40))
    await redis.start()
    socket = socket_of(redis)

    assert len(os.fsencode(socket)) < 100
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    await redis.stop()
    assert not socket.parent.exists()


async def test_folder_with_spaces_quotes_and_unicode_works(make: Make, tmp_path: Path) -> None:
    redis = make(tmp_path / "my data \"é\" 'x' {y} #1")

    await redis.start()

    assert await answers(redis)


async def test_stop_ends_the_server_in_time_with_clients_connected(make: Make) -> None:
    redis = make()
    await redis.start()
    async with connected(redis):
        pid = redis.pid
        assert pid is not None

        async with deadline(5):
            await redis.stop()

    assert gone(pid)


async def test_frozen_server_is_ended_all_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.eventlog.embedded.STOP_SECONDS", 0.2)
    redis = make()
    await redis.start()
    assert redis.pid is not None
    pid = redis.pid
    os.kill(pid, signal.SIGSTOP)

    await redis.stop()

    assert gone(pid)


async def test_server_killed_is_restarted_at_the_same_address_with_its_data(make: Make) -> None:
    redis = make()
    await redis.start()
    async with running(redis):
        for round_ in range(3):
            await command(redis, "XADD", "s", "*", "a", "1")
            address, pid = redis.url, redis.pid
            assert pid is not None

            os.kill(pid, signal.SIGKILL)

            async with deadline(10):
                await eventually(lambda: redis.pid not in (None, pid), 10)  # noqa: B023
            assert (redis.url, await command(redis, "XLEN", "s")) == (address, round_ + 1)


async def test_server_killed_under_load_loses_no_acknowledged_append(make: Make) -> None:
    redis = make()
    await redis.start()
    acknowledged: list[str] = []

    async def load() -> None:
        while True:
            with contextlib.suppress(LogUnavailable):
                async with connected(redis) as call:
                    while True:
                        acknowledged.append(await call("XADD", "s", "*", "n", len(acknowledged)))
            await asyncio.sleep(0.01)

    async def more(count: int) -> None:
        wanted = len(acknowledged) + count
        await eventually(lambda: len(acknowledged) >= wanted, 10)

    async with running(redis), asyncio.TaskGroup() as group:
        task = group.create_task(load())
        for _ in range(2):
            await more(200)
            assert redis.pid is not None
            os.kill(redis.pid, signal.SIGKILL)
            await more(200)
        task.cancel()

    stored = {entry for entry, _ in await command(redis, "XRANGE", "s", "-", "+")}
    assert set(acknowledged) <= stored


async def test_second_process_attaches_and_leaves_the_server_alone(make: Make, tmp_path: Path) -> None:
    process, pid, owner = await other_process(tmp_path / "data")
    redis = make()
    await redis.start()

    assert owner
    assert not redis.owner
    assert redis.pid == pid
    await redis.stop()
    assert not gone(pid)
    await ended(process)
    assert gone(pid)


async def test_attached_process_takes_over_when_the_owner_ends(make: Make, tmp_path: Path) -> None:
    process, pid, _ = await other_process(tmp_path / "data")
    redis = make()
    await redis.start()
    await command(redis, "SET", "k", "v")
    async with running(redis):
        await ended(process)

        await eventually(lambda: redis.owner and redis.pid not in (None, pid), 10)
        assert await command(redis, "GET", "k") == "v"


async def test_killed_owner_leaves_no_server(tmp_path: Path) -> None:
    process, pid, _ = await other_process(tmp_path / "data")

    process.kill()
    await process.wait()

    await eventually(lambda: gone(pid), 5)


async def test_data_survives_the_killing_of_owner_and_server(make: Make, tmp_path: Path) -> None:
    process, pid, _ = await other_process(tmp_path / "data")
    attached = make()
    await attached.start()
    await command(attached, "XADD", "s", "1-1", "a", "1")
    await attached.stop()
    process.kill()
    os.kill(pid, signal.SIGKILL)
    await process.wait()

    redis = make()
    await redis.start()

    assert redis.owner
    assert await command(redis, "XLEN", "s") == 1


async def test_orphan_is_adopted_and_ends_with_its_new_owner(make: Make, tmp_path: Path) -> None:
    redis = make()
    await redis.start()
    await command(redis, "SET", "k", "v")
    # What a killed owner leaves where there is no parent-death signal: a server, and a lock that is free.
    assert redis._owner_lock is not None
    os.close(redis._owner_lock)
    redis._owner_lock = None

    process, pid, owner = await other_process(tmp_path / "data")

    assert owner
    assert pid == redis.pid
    process.kill()
    await process.wait()
    await eventually(lambda: gone(pid))


async def test_adopted_server_is_ended_by_stop(make: Make, tmp_path: Path) -> None:
    redis = make()
    await redis.start()
    assert redis._owner_lock is not None
    os.close(redis._owner_lock)
    redis._owner_lock = None
    process, pid, _ = await other_process(tmp_path / "data")

    await ended(process)

    assert gone(pid)


async def test_new_owner_waits_for_the_server_of_a_killed_one(make: Make, tmp_path: Path) -> None:
    process, pid, _ = await other_process(tmp_path / "data")
    os.kill(pid, signal.SIGSTOP)  # it will follow the parent-death signal later
    process.kill()
    await process.wait()
    redis = make()
    starting = asyncio.create_task(redis.start())
    await asyncio.wait([starting], timeout=0.2)

    os.kill(pid, signal.SIGCONT)

    async with deadline(10):
        await starting
    assert gone(pid)
    assert await answers(redis)


async def test_copied_folder_gets_a_server_of_its_own(make: Make, tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    await first.start()
    await command(first, "SET", "k", "v")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    second = make(tmp_path / "b")

    await second.start()

    assert second.url != first.url
    assert second.pid != first.pid
    assert await command(second, "GET", "k") == "v"
    assert await answers(first)


async def test_older_server_does_not_touch_data_of_a_newer_one(make: Make) -> None:
    newer = make(binary=need_redis70())
    await newer.start()
    await newer.stop()

    with pytest.raises(ConfigError, match=r"written by redis 7\.\d+, which redis 6\.2 .* cannot read"):
        await make(binary=need_redis62()).start()


async def test_the_server_on_path_that_can_read_the_data_is_taken_though_an_older_one_comes_first(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, binary in (("old", need_redis62()), ("new", need_redis70())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "redis-server").symlink_to(binary)
    newer = make(binary=need_redis70())
    await newer.start()
    await command(newer, "SET", "k", "v")
    await newer.stop()
    monkeypatch.setenv("PATH", f"{tmp_path / 'old'}:{tmp_path / 'new'}")
    found = make()

    await found.start()

    assert await command(found, "GET", "k") == "v"


async def test_newer_server_takes_over_the_data_of_an_older_one(make: Make) -> None:
    older = make(binary=need_redis62())
    await older.start()
    await command(older, "SET", "k", "v")
    await older.stop()
    newer = make(binary=need_redis70())

    await newer.start()

    assert await command(newer, "GET", "k") == "v"


async def test_missing_program_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="apt install redis-server"):
        await make().start()


async def test_embedded_wheel_is_used_where_path_has_no_server(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = need_redis62()
    monkeypatch.setenv("PATH", "/nowhere")
    redis = make()

    await redis.start()

    assert redis.program is not None
    assert redis.program.path == binary


@pytest.mark.parametrize("binary", ["/nowhere/redis-server", "/bin/true", "/"])
async def test_program_that_is_no_server_is_refused(make: Make, binary: str) -> None:
    with pytest.raises(ConfigError, match="not a Redis or Valkey server"):
        await make(binary=binary).start()


async def test_folder_that_is_a_file_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be used"):
        await make(tmp_path / "file").start()


async def test_damaged_data_is_refused_with_the_servers_own_words(make: Make, tmp_path: Path) -> None:
    redis = make(binary=need_redis62())
    await redis.start()
    await command(redis, "SET", "k", "v")
    await redis.stop()
    file = tmp_path / "data" / "redis" / "appendonly.aof"
    file.write_bytes(b"*3\r\n$9x\r\n" + file.read_bytes())

    with pytest.raises(ConfigError, match="Bad file format"):
        await make(binary=need_redis62()).start()


async def test_truncated_tail_of_the_data_is_no_obstacle(make: Make, tmp_path: Path) -> None:
    redis = make(binary=need_redis62())
    await redis.start()
    await command(redis, "SET", "k", "v")
    await command(redis, "SET", "half", "v")
    await redis.stop()
    file = tmp_path / "data" / "redis" / "appendonly.aof"
    file.write_bytes(file.read_bytes()[:-3])
    again = make(binary=need_redis62())

    await again.start()

    assert await command(again, "GET", "k") == "v"
    assert await command(again, "GET", "half") is None


@pytest.mark.parametrize("need", [need_redis62, need_redis70])
async def test_what_is_written_after_a_script_was_cut_in_half_is_kept(
    make: Make, tmp_path: Path, need: Callable[[], str]
) -> None:
    redis = make(binary=need())
    await redis.start()
    await command(redis, "EVAL", "redis.call('SET', 'first', '1') redis.call('SET', 'second', '1')", 0)
    await redis.stop()
    (file,) = tmp_path.rglob("*.incr.aof" if need is need_redis70 else "*.aof")
    file.write_bytes(file.read_bytes()[:-3])

    again = make(binary=need())
    await again.start()
    await command(again, "SET", "later", "1")
    await again.stop()
    last = make(binary=need())
    await last.start()

    assert await command(last, "MGET", "first", "second", "later") == [None, None, "1"]


async def test_folder_held_by_something_that_does_not_answer_is_refused_in_time(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.eventlog.embedded.ANSWER_SECONDS", 0.3)
    process, pid, _ = await other_process(tmp_path / "data")
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(LogUnavailable, match="does not answer"):
        await make().start()

    os.kill(pid, signal.SIGCONT)
    await ended(process)


async def test_cancelled_start_leaves_no_server(make: Make, tmp_path: Path) -> None:
    redis = make()
    task = asyncio.create_task(redis.start())
    await eventually(lambda: (tmp_path / "data" / "redis" / "redis.conf").exists())

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert not redis.owner
    again = make()
    await again.start()
    assert again.owner


async def test_url_before_start_is_a_usage_error(make: Make) -> None:
    with pytest.raises(UsageError):
        _ = make().url


async def test_server_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path / "data")
    await asyncio.to_thread(asyncio.run, redis.start())

    assert await answers(redis)
    await redis.stop()


def test_uvloop_supervises_too(tmp_path: Path) -> None:
    import uvloop

    async def main() -> None:
        redis = EmbeddedRedis(tmp_path / "data")
        await redis.start()
        async with running(redis):
            pid = redis.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: redis.pid not in (None, pid), 10)
        await redis.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
