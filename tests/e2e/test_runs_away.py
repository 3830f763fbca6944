"""Redis hangs for a minute in the middle of runs, longer than every lease, deadline and pause: nobody is the worse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tailrace.features.runs.producing import Runs
from tailrace.features.runs.producing_sync import RunsSync
from tests.e2e.harness import EventSource, Gateway, admin_token, gateway, stored_ids
from tests.support.checker import assert_exactly_once
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import deadline, eventually

AWAY_SECONDS = 61.0
PAUSE_SECONDS = 0.02


class Work:
    """What the code of a run says, and what it was told."""

    def __init__(self) -> None:
        self.taken: list[bool] = []
        self.over = threading.Event()

    def say(self, emit: Callable[[str, int], bool]) -> None:
        self.taken.append(emit("note", len(self.taken)))

    async def in_a_task(self, runs: Runs, run_id: str) -> None:
        async with runs.open(run_id=run_id) as run:
            while not self.over.is_set():
                self.say(run.emit)
                await asyncio.sleep(PAUSE_SECONDS)

    def in_a_thread(self, url: str, run_id: str) -> None:
        with RunsSync.connect(url, token=admin_token()) as runs, runs.open(run_id=run_id) as run:
            while not self.over.wait(PAUSE_SECONDS):
                self.say(run.emit)


class Audience:
    """Viewers of every run."""

    def __init__(self, served: Gateway, names: Iterable[str]) -> None:
        self.of: dict[str, list[EventSource]] = {name: [] for name in names}
        self._url = served.url
        self._reading: list[asyncio.Task[None]] = []

    def join(self) -> None:
        """One more for each."""
        for name, those in self.of.items():
            those.append(EventSource(self._url, f"run:{name}", token=admin_token()))
            self._reading.append(asyncio.create_task(those[-1].run()))

    async def wait_given(self, more_than: Mapping[str, int]) -> None:
        """Wait until the first one of each was given so much."""
        await eventually(lambda: all(len(self.of[name][0].records) > more_than[name] for name in self.of), 90)

    async def wait_end(self) -> None:
        """Wait until all were told the end."""
        async with deadline(90):
            await asyncio.gather(*self._reading)

    async def leave(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)


async def row(served: Gateway, run_id: str) -> Any:
    """A run as SQL has it."""
    headers = {"authorization": f"Bearer {admin_token()}"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        return (await client.get(f"{served.url}/runs/{run_id}")).json()


async def judge(redis: RedisServer, prefix: str, run_id: str, work: Work, viewers: list[EventSource]) -> None:
    """Everything that was said is stored once, in order, and every viewer was given all of it, once."""
    stored = [id_ for id_, _ in await stored_ids(redis, f"{prefix}run:{{{run_id}}}:events")]
    assert all(work.taken)
    for viewer in viewers:
        assert_exactly_once(viewer.items, stored)
        assert [each.type for each in viewer.records if each.type != "note"] == ["run.started", "run.completed"]
        notes = [msgspec.json.decode(each.data) for each in viewer.records if each.type == "note"]
        assert notes == list(range(len(work.taken)))


async def end_early(served: Gateway, work: Work, working: asyncio.Task[None]) -> None:
    """One ends while Redis is away: its status is told all the same, and its lease is over long before the end."""
    work.over.set()
    async with deadline(60):
        await working
    early = await row(served, "early")
    assert (early["status"], early["sealed"]) == ("completed", False)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_redis_away_for_a_minute_harms_no_run_and_no_viewer(
    start_redis: StartRedis, key_prefix: str, tmp_path: Path
) -> None:
    works = {"task": Work(), "thread": Work(), "early": Work()}
    async with AsyncExitStack() as stack:
        redis = await start_redis({"appendfsync": "no"})
        served = await stack.enter_async_context(gateway(redis, key_prefix, tmp_path))
        runs = await stack.enter_async_context(Runs.connect(served.url, token=admin_token()))
        working = {
            "task": asyncio.create_task(works["task"].in_a_task(runs, "task")),
            "early": asyncio.create_task(works["early"].in_a_task(runs, "early")),
            "thread": asyncio.create_task(asyncio.to_thread(works["thread"].in_a_thread, served.url, "thread")),
        }
        for work in works.values():
            stack.callback(work.over.set)
        audience = Audience(served, works)
        stack.push_async_callback(audience.leave)
        audience.join()
        await audience.wait_given(dict.fromkeys(works, 20))

        redis.pause()
        await end_early(served, works["early"], working["early"])
        audience.join()
        said = {name: len(work.taken) for name, work in works.items()}
        await asyncio.sleep(AWAY_SECONDS)  # the fault itself
        assert all(len(works[name].taken) > said[name] + 500 for name in ("task", "thread"))
        assert [(await row(served, name))["status"] for name in ("task", "thread")] == ["running", "running"]
        redis.resume()
        await audience.wait_given(said)

        for work in works.values():
            work.over.set()
        async with deadline(90):
            await asyncio.gather(*working.values())
        await audience.wait_end()
        for name, work in works.items():
            await judge(redis, key_prefix, name, work, audience.of[name])
            ended = await row(served, name)
            assert (ended["status"], ended["sealed"]) == ("completed", True)
