"""`tailrace exec` as a registered run: its status, its end, and a cancel that reaches the command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tailrace.cli.leftovers import deliver_leftovers
from tailrace.cli.target import HOME
from tailrace.client.spool import Entry, SpoolFile
from tailrace.core.codec import encode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.base import Appended
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.runs.ending import RunEnd
from tailrace.features.runs.events import EventStore
from tailrace.features.runs.model import RunStatus, run_stream
from tests.features.runs.api import SERVICE, Site, site
from tests.support.commands import Result, clean_environment, run_command, started
from tests.support.faulty import faulty_proxy
from tests.support.redis_servers import StartRedis
from tests.support.wait import eventually


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path / "gateway") as made:
        yield made


async def execute(there: Site, folder: Path, *arguments: str) -> Result:
    env = clean_environment(folder, TAILRACE_URL=there.served.url, TAILRACE_TOKEN=SERVICE)
    return await run_command("exec", "--id", "1", *arguments, cwd=folder, env=env)


async def types(there: Site) -> list[str]:
    async with EventStore(there.served.url, token=SERVICE) as store:
        return [event.type for event in await store.get_events("1", limit=1_000)]


@pytest.mark.parametrize(("code", "status"), [(0, "completed"), (3, "failed")])
async def test_a_command_is_a_run_with_its_outcome(there: Site, tmp_path: Path, code: int, status: str) -> None:
    result = await execute(there, tmp_path, "--", "bash", "-c", f"exit {code}")

    run = await there.good("GET", "/runs/1")
    assert result.code == code
    assert (run["status"], run["kind"], run["result"] if code == 0 else run["error"]) == (
        status,
        "exec",
        {"exit_code": 0} if code == 0 else "exit code 3",
    )
    assert (await types(there))[-2:] == ["run.exited", f"run.{status}"]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancel_ends_the_command_with_sigterm_and_then_with_sigkill(
    there: Site, tmp_path: Path, stubborn: bool
) -> None:
    trap = "trap '' TERM; " if stubborn else ""
    command = asyncio.create_task(
        execute(
            there, tmp_path, "--grace", "0.5", "--", "bash", "-c", f"{trap}echo ready; while true; do sleep 0.1; done"
        )
    )

    async def ready() -> bool:
        answer = await there.ask("GET", "/runs/1")
        return answer.is_success and answer.json()["status"] == "running" and "run.output" in await types(there)

    await eventually(ready, 60, every=0.1)
    await there.good("POST", "/runs/1/cancel")
    result = await command

    assert result.code == 128 + (9 if stubborn else 15)
    assert (await there.good("GET", "/runs/1"))["status"] == "cancelled"
    assert (await types(there))[-2:] == ["run.exited", "run.cancelled"]


async def test_what_a_command_could_not_deliver_is_delivered_by_the_next_one_which_ends_its_stream(
    tmp_path: Path, start_redis: StartRedis
) -> None:
    redis = await start_redis()
    log = RedisLog.connect(redis.url)
    async with site(tmp_path / "gateway", log=log, run_lease_seconds=1.0) as there:
        env = clean_environment(tmp_path, TAILRACE_URL=there.served.url, TAILRACE_TOKEN=SERVICE)
        await redis.kill()
        first = await run_command("exec", "--id", "1", "--wait", "0.2", "--", "echo", "one", cwd=tmp_path, env=env)
        left = await there.good("GET", "/runs/1")
        await redis.start()

        second = await run_command("exec", "--id", "2", "--wait", "30", "--", "true", cwd=tmp_path, env=env)

        assert (first.code, second.code) == (0, 0)
        assert (left["status"], left["sealed"]) == ("completed", False)
        assert (await there.good("GET", "/runs/1"))["sealed"]
        assert await types(there) == ["run.started", "run.output", "run.exited", "run.completed"]
    await log.aclose()


async def test_how_a_command_ended_is_told_by_the_next_one_when_the_gateway_was_away_then(
    there: Site, tmp_path: Path
) -> None:
    async with faulty_proxy(there.served.port) as proxy:
        env = clean_environment(tmp_path, TAILRACE_URL=proxy.url, TAILRACE_TOKEN=SERVICE)
        first = ("exec", "--id", "1", "--wait", "0.2", "--", "bash", "-c", "echo ready; read line; exit 3")
        async with started(*first, cwd=tmp_path, env=env) as command:

            async def ready() -> bool:
                answer = await there.ask("GET", "/runs/1")
                return answer.is_success and answer.json()["status"] == "running"

            await eventually(ready, 60, every=0.1)
            proxy.refusing = True
            proxy.cut()
            assert command.process.stdin is not None
            command.process.stdin.write(b"\n")
            ended = await command.end(60)
        left = await there.good("GET", "/runs/1")
        proxy.refusing = False

        await run_command("exec", "--id", "2", "--wait", "30", "--", "true", cwd=tmp_path, env=env, seconds=60)

    run = await there.good("GET", "/runs/1")
    assert (ended.code, left["status"]) == (3, "running")
    assert "how the run ended could not be told" in ended.err
    assert (run["status"], run["error"], run["sealed"], run["owner_epoch"]) == ("failed", "exit code 3", True, 1)
    assert (await types(there))[-2:] == ["run.exited", "run.failed"]
    assert list(tmp_path.glob("**/*.spool")) == []


class Refusing(MemoryLog):
    """A log that stores nothing of the run for now."""

    refusing = True

    async def append(self, stream: StreamName, events: Sequence[Event], **more: Any) -> list[Appended]:
        if self.refusing and stream == "run:1":
            raise LogUnavailable("away")
        return await super().append(stream, events, **more)


async def test_a_command_that_is_registered_when_it_has_ended_already_is_not_lost(tmp_path: Path) -> None:
    log = Refusing()
    async with site(tmp_path / "gateway", log=log) as there, faulty_proxy(there.served.port) as proxy:
        proxy.refusing = True
        env = clean_environment(tmp_path, TAILRACE_URL=proxy.url, TAILRACE_TOKEN=SERVICE)
        async with started("exec", "--id", "1", "--wait", "120", "--", "true", cwd=tmp_path, env=env) as command:

            async def ended() -> bool:
                return any("run.exited" in path.read_text() for path in tmp_path.glob("**/*.spool"))

            async def running() -> bool:
                answer = await there.ask("GET", "/runs/1")
                return answer.is_success and answer.json()["status"] == "running"

            await eventually(ended, 60, every=0.1)
            proxy.refusing = False
            await eventually(running, 60, every=0.1)
            log.refusing = False
            result = await command.end(60)

        run = await there.good("GET", "/runs/1")
        assert (result.code, run["status"], run["result"]) == (0, "completed", {"exit_code": 0})
    await log.aclose()


def leave(folder: Path, epoch: int) -> None:
    """An event of the first run and how that ended, in the folder."""
    spool = SpoolFile.create(folder, "exec", HOME)
    spool.put([Entry.of(run_stream("1"), Event("run.output", encode(1, max_bytes=10), "u"), epoch)])
    end = RunEnd(run="1", epoch=epoch, status=RunStatus.COMPLETED)
    spool.note(end.key, end.note())
    spool.close()


@pytest.mark.parametrize("told", [False, True])
async def test_a_server_that_delivers_what_was_left_ends_those_runs(there: Site, tmp_path: Path, told: bool) -> None:
    await there.make("1")
    epoch = await there.claim("1")
    if told:
        await there.good("POST", "/runs/1/complete", json={"epoch": epoch, "seal": False, "hold_seconds": 600})
    await asyncio.to_thread(leave, tmp_path / "spool", epoch)

    delivering = asyncio.create_task(deliver_leftovers(tmp_path / "spool", there.served.url, SERVICE))
    try:

        async def sealed() -> bool:
            return bool((await there.good("GET", "/runs/1"))["sealed"])

        await eventually(sealed, 60, every=0.1)
    finally:
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)

    assert await types(there) == ["run.output", "run.completed"]
