"""`tailrace dev`: one command, kept keys, kept data, a quick end; and the whole way from a process to its readers."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.commands import Command, Result, clean_environment, run_command, started
from tests.support.redis_servers import find_port


@asynccontextmanager
async def dev(folder: Path, *arguments: str, port: int = 0) -> AsyncIterator[tuple[Command, list[str]]]:
    """A running `dev`, and what it printed: address, link, three commands."""
    env = clean_environment(folder)
    async with started("dev", "--port", str(port), *arguments, cwd=folder, env=env) as command:
        lines = [await command.line() for _ in range(5)]
        try:
            yield command, lines
        finally:
            if command.process.returncode is None:
                command.send(signal.SIGTERM)
                await command.end(15)


async def run(folder: Path, *arguments: str, seconds: float = 40.0) -> Result:
    return await run_command(*arguments, cwd=folder, env=clean_environment(folder), seconds=seconds)


def address(lines: list[str]) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", lines[0])
    assert found is not None
    return found[0]


async def test_the_printed_commands_work_as_they_are_in_another_terminal(tmp_path: Path) -> None:
    async with dev(tmp_path) as (_, lines):
        publish, _tail, execute = lines[2:]
        published = await shell(tmp_path, publish)
        said = await shell(tmp_path, execute.replace("sleep 1", "true"))
        told = await run(tmp_path, "tail", "run:demo", "-n", "5", "--no-follow")

    assert published.code == said.code == 0
    assert said.lines == [f"line {n}" for n in range(1, 6)]
    assert [record["data"] for record in told.records] == [{"text": "hello"}]


async def shell(folder: Path, line: str) -> Result:
    return await run_command("-c", line, cwd=folder, env=clean_environment(folder), program=["sh"])


async def test_the_link_signs_in_by_its_fragment_and_the_keys_are_private(tmp_path: Path) -> None:
    async with dev(tmp_path) as (_, lines):
        link = lines[1].removeprefix("link: ")

    assert link.startswith(address(lines) + "/#token=ey")
    assert link.endswith("&stream=run:demo")
    folder = tmp_path / ".tailrace"
    for name in ("secret", "token", "url"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_second_start_finds_the_same_data_and_keys(tmp_path: Path) -> None:
    async with dev(tmp_path) as (_, first):
        await run(tmp_path, "publish", "run:1", "one")
    kept = [(tmp_path / ".tailrace" / name).read_text() for name in ("secret", "token")]

    async with dev(tmp_path) as (_, second):
        told = await run(tmp_path, "tail", "run:1", "--no-follow")

    assert [(tmp_path / ".tailrace" / name).read_text() for name in ("secret", "token")] == kept
    assert first[1].partition("#")[2] == second[1].partition("#")[2]
    assert [record["data"] for record in told.records] == ["one"]


async def test_a_second_dev_beside_a_running_one_says_where_it_is(tmp_path: Path) -> None:
    async with dev(tmp_path) as (_, lines):
        second = await run(tmp_path, "dev")

    assert second.code == 0
    assert second.lines[0] == lines[0].replace("is ready", "is running already")
    assert second.lines[1:] == lines[1:]


async def test_a_redis_that_was_named_and_does_not_answer_is_told_instead_of_ready(tmp_path: Path) -> None:
    env = clean_environment(tmp_path)

    result = await run_command("dev", "--port", "0", "--redis", "redis://127.0.0.1:1", cwd=tmp_path, env=env)

    assert (result.code, result.out) == (69, "")
    assert "127.0.0.1:1 cannot be reached" in result.err


async def test_a_port_in_use_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = await run(tmp_path, "dev", "--port", str(taken.getsockname()[1]))

    assert result.code == 78
    assert "--port" in result.err
    assert "Traceback" not in result.err


async def test_ctrl_c_ends_it_in_time_with_readers_connected(tmp_path: Path) -> None:
    async with dev(tmp_path) as (command, _):
        await run(tmp_path, "publish", "run:1", "x")
        env = clean_environment(tmp_path)
        async with (
            started("tail", "run:1", cwd=tmp_path, env=env) as first,
            started("tail", "run:1", cwd=tmp_path, env=env) as second,
        ):
            await first.line()
            await second.line()
            begun = time.monotonic()
            command.send(signal.SIGINT)
            result = await command.end(15)
            took = time.monotonic() - begun

    assert result.code == 0
    assert took < 5
    assert "Traceback" not in result.err


async def test_another_data_folder_is_named_in_the_printed_commands(tmp_path: Path) -> None:
    async with dev(tmp_path, "--data-dir", "else where") as (_, lines):
        assert lines[2].startswith(f"TAILRACE_DATA_DIR={shlex.quote('else where')} ")
        assert (await shell(tmp_path, lines[2])).code == 0


async def test_what_was_said_while_it_was_away_is_delivered_when_it_is_back(tmp_path: Path) -> None:
    async with dev(tmp_path):
        pass
    said = await run(tmp_path, "exec", "--id", "1", "--wait", "0", "--", "seq", "3")
    assert said.out.split() == ["1", "2", "3"]

    async with dev(tmp_path):
        told = await run(tmp_path, "tail", "run:1")

    assert [each["data"]["text"] for each in told.records if each.get("type") == "run.output"] == ["1", "2", "3"]


async def set_sync(folder: Path, mode: str) -> None:
    """Set the folder's Redis to another `appendfsync`."""
    path = json.loads((folder / ".tailrace" / "redis" / "server.json").read_text())["socket"]
    async with Redis(unix_socket_path=path) as client:
        await client.config_set("appendfsync", mode)


def redis_pid(folder: Path) -> int:
    """The process that serves the folder's socket."""
    import psutil

    path = json.loads((folder / ".tailrace" / "redis" / "server.json").read_text())["socket"]
    for process in psutil.process_iter(["name"]):
        if "redis" in (process.info["name"] or "") or "valkey" in (process.info["name"] or ""):
            try:
                if any(path in argument for argument in [*process.cmdline(), *process.environ().values()]):
                    return int(process.pid)
                if str(folder / ".tailrace" / "redis") == process.cwd():
                    return int(process.pid)
            except psutil.Error:
                continue
    raise AssertionError("no redis runs")


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_every_reader_ends_with_every_line_once_though_redis_and_the_gateway_are_killed(tmp_path: Path) -> None:
    port, total = find_port(), 400
    env = clean_environment(tmp_path)
    counter = f"import time\nfor n in range({total}):\n    print(n, flush=True)\n    time.sleep(0.02)\n"
    async with dev(tmp_path, port=port) as (first, _):
        run_it = started("exec", "--id", "1", "--", sys.executable, "-c", counter, cwd=tmp_path, env=env)
        async with run_it as exec_, started("tail", "run:1", cwd=tmp_path, env=env) as reader:
            seen = [await reader.until('"text":"30"')]
            # Its Redis syncs every second: on a slow disk a kill may lose what waits for that (docs/faults.md).
            await set_sync(tmp_path, "always")
            os.kill(redis_pid(tmp_path), signal.SIGKILL)
            seen.append(await reader.until('"text":"120"', 40))
            os.killpg(first.process.pid, signal.SIGKILL)
            await first.end()
            async with dev(tmp_path, port=port):
                done = await exec_.end(60)
                told = await reader.end(60)
                again = await run(tmp_path, "tail", "run:1")

    lines = [record["data"]["text"] for record in again.records if record.get("type") == "run.output"]
    assert done.code == 0
    assert lines == [str(n) for n in range(total)]
    live = [record["data"]["text"] for record in told.records if record.get("type") == "run.output"]
    assert live == [str(n) for n in range(121, total)]
    assert told.code == 0
    assert not any(record.get("control") == "gap" for record in told.records)
