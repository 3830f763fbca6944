"""Redis is away for longer than small spools last: runs go on, the newest events are refused, and that is one gap."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailrace.features.runs.events import EventStore
from tailrace.features.runs.producing import Runs
from tailrace.features.runs.producing_sync import RunsSync
from tests.e2e.harness import Gateway, admin_token, gateway
from tests.support.commands import Command, clean_environment, started
from tests.support.redis_servers import StartRedis
from tests.support.wait import deadline, eventually

SPOOL_BYTES = 20_000
FULL_SECONDS = 6.0
PAUSE_SECONDS = 0.02
CHATTY = "import sys, time\nfor n in iter(int, 1):\n    print('x' * 100, flush=True)\n    time.sleep(0.02)\n"


class Work:
    """What the code of a run says, and what it was told."""

    def __init__(self) -> None:
        self.taken: list[bool] = []
        self.over = threading.Event()

    def say(self, emit: Callable[[str, Any], bool]) -> None:
        self.taken.append(emit("note", [len(self.taken), "x" * 100]))

    async def in_a_task(self, runs: Runs) -> None:
        async with runs.open(run_id="task") as run:
            while not self.over.is_set():
                self.say(run.emit)
                await asyncio.sleep(PAUSE_SECONDS)

    def in_a_thread(self, url: str, spool: Path) -> None:
        with (
            RunsSync.connect(url, token=admin_token(), spool=spool, spool_bytes=SPOOL_BYTES) as runs,
            runs.open(run_id="thread") as run,
        ):
            while not self.over.wait(PAUSE_SECONDS):
                self.say(run.emit)

    def refused(self) -> int:
        return self.taken.count(False)


async def row(served: Gateway, run_id: str) -> Any:
    """A run as SQL has it."""
    headers = {"authorization": f"Bearer {admin_token()}"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        return (await client.get(f"{served.url}/runs/{run_id}")).json()


async def told(served: Gateway, run_id: str, last: str) -> list[tuple[str, Any]]:
    """What the stream says, once it has its end."""

    async def there() -> list[tuple[str, Any]]:
        async with EventStore(served.url, token=admin_token()) as store:
            found = [(each.type, each.data) for each in await store.get_events(run_id, limit=10_000)]
        assert found
        assert found[-1][0] == last, found[-1]
        return found

    found: list[tuple[str, Any]] = await eventually(there, 90, every=0.2)
    return found


async def goes_on(served: Gateway) -> bool:
    """Whether the command's output is recorded again behind its gap."""
    async with EventStore(served.url, token=admin_token()) as store:
        types = [each.type for each in await store.get_events("exec", limit=10_000)]
    return "run.skipped" in types and "run.output" in types[types.index("run.skipped") :]


def judge(work: Work, said: list[tuple[str, Any]]) -> None:
    """What was taken is there, once and in order, and one gap with its count where the rest is missing."""
    missing = [n for n, taken in enumerate(work.taken) if not taken]
    assert len(missing) > 50
    assert missing == list(range(missing[0], missing[-1] + 1)), "what is refused is the newest, up to the end"
    notes = [data[0] for type_, data in said if type_ == "note"]
    assert notes == [n for n in range(len(work.taken)) if n not in set(missing)]
    ((at, gap),) = [(at, data) for at, (type_, data) in enumerate(said) if type_ == "events.skipped"]
    assert gap["count"] == len(missing)
    assert said[at - 1][1][0] == missing[0] - 1
    assert [type_ for type_, _ in said if type_ not in ("note", "events.skipped")] == ["run.started", "run.completed"]


async def command_of(served: Gateway, folder: Path, stack: AsyncExitStack) -> Command:
    """`tailrace exec` of a command that talks and knows of nothing."""
    options = ("--id", "exec", "--spool", str(folder / "exec"), "--spool-bytes", str(SPOOL_BYTES), "--wait", "60")
    env = clean_environment(folder, TAILRACE_URL=served.url, TAILRACE_TOKEN=admin_token())
    arguments = ("exec", "--quiet", *options, "--", sys.executable, "-c", CHATTY)
    return await stack.enter_async_context(started(*arguments, cwd=folder, env=env))


@pytest.mark.slow
async def test_redis_away_beyond_the_spools_is_one_gap_and_every_run_ends_as_it_does(
    start_redis: StartRedis, key_prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, thread = Work(), Work()
    async with AsyncExitStack() as stack:
        redis = await start_redis({"appendfsync": "no"})
        served = await stack.enter_async_context(gateway(redis, key_prefix, tmp_path))
        runs = await stack.enter_async_context(Runs.connect(served.url, token=admin_token(), spool_bytes=SPOOL_BYTES))
        stack.callback(task.over.set)
        stack.callback(thread.over.set)
        command = await command_of(served, tmp_path, stack)
        working = asyncio.gather(
            task.in_a_task(runs), asyncio.to_thread(thread.in_a_thread, served.url, tmp_path / "spool")
        )

        async def delivered() -> bool:
            rows = [await row(served, name) for name in ("task", "thread", "exec")]
            return all(each.get("status") == "running" for each in rows) and len(task.taken) > 20

        await eventually(delivered, 60, every=0.1)
        redis.pause()
        await eventually(lambda: min(task.refused(), thread.refused()) > 0, 60)
        await asyncio.sleep(FULL_SECONDS)  # the fault itself
        # One ends meanwhile: its status is known at once, its events are not.
        task.over.set()
        await eventually(_status_of(served, "task", "completed"), 60, every=0.2)
        redis.resume()
        taken = len(thread.taken)
        await eventually(lambda: len(thread.taken) > taken + 20 and all(thread.taken[-10:]), 60)
        thread.over.set()
        async with deadline(90):
            await working
        headers = {"authorization": f"Bearer {admin_token()}"}
        await eventually(lambda: goes_on(served), 90, every=0.2)
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            assert (await client.post(f"{served.url}/runs/exec/cancel")).is_success
        await command.end(90)

        judge(task, await told(served, "task", "run.completed"))
        judge(thread, await told(served, "thread", "run.completed"))
        said = await told(served, "exec", "run.cancelled")
    complaints = [each for each in caplog.records if each.message.startswith("the spool is full")]
    assert len(complaints) == 2
    assert all(each.levelno == logging.ERROR for each in complaints)
    ((at, gap),) = [(at, data) for at, (type_, data) in enumerate(said) if type_ == "run.skipped"]
    exited = next(data for type_, data in said if type_ == "run.exited")
    recorded = sum(type_ == "run.output" for type_, _ in said)
    assert (gap["pieces"] > 50, exited["lines"]) == (True, recorded + gap["pieces"])
    assert {type_ for type_, _ in said[at + 1 :]} == {"run.output", "run.exited", "run.cancelled"}


def _status_of(served: Gateway, run_id: str, status: str) -> Callable[[], Any]:
    async def has() -> bool:
        return bool((await row(served, run_id))["status"] == status)

    return has
