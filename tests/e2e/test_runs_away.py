"""Redis hangs for a minute in the middle of runs, longer than every lease, deadline and pause: nobody is the worse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
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


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_redis_away_for_a_minute_harms_no_run_and_no_viewer(
    start_redis: StartRedis, key_prefix: str, tmp_path: Path
) -> None:
    works = {"task": Work(), "thread": Work(), "early": Work()}
    viewers: dict[str, list[EventSource]] = {name: [] for name in works}
    reading: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        redis = await start_redis({"appendfsync": "no"})
        served = await stack.enter_async_context(gateway(redis, key_prefix, tmp_path))
        runs = await stack.enter_async_context(Runs.connect(served.url, token=admin_token()))

        def view() -> None:
            for name, those in viewers.items():
                those.append(EventSource(served.url, f"run:{name}", token=admin_token()))
                reading.append(asyncio.create_task(those[-1].run()))

        working = {
            "task": asyncio.create_task(works["task"].in_a_task(runs, "task")),
            "early": asyncio.create_task(works["early"].in_a_task(runs, "early")),
            "thread": asyncio.create_task(asyncio.to_thread(works["thread"].in_a_thread, served.url, "thread")),
        }
        for work in works.values():
            stack.callback(work.over.set)
        try:
            view()
            await eventually(lambda: all(len(those[0].records) > 20 for those in viewers.values()), 60)

            redis.pause()
            # One ends while Redis is away: its status is told all the same, and its lease is over long before the end.
            works["early"].over.set()
            async with deadline(60):
                await working["early"]
            early = await row(served, "early")
            assert (early["status"], early["sealed"]) == ("completed", False)
            view()
            said = {name: len(work.taken) for name, work in works.items()}
            await asyncio.sleep(AWAY_SECONDS)  # the fault itself
            assert all(len(works[name].taken) > said[name] + 500 for name in ("task", "thread"))
            assert [(await row(served, name))["status"] for name in ("task", "thread")] == ["running", "running"]
            redis.resume()
            await eventually(lambda: all(len(those[0].records) > said[name] for name, those in viewers.items()), 90)

            for work in works.values():
                work.over.set()
            async with deadline(90):
                await asyncio.gather(*working.values())
                await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

        for name, work in works.items():
            await judge(redis, key_prefix, name, work, viewers[name])
            ended = await row(served, name)
            assert (ended["status"], ended["sealed"]) == ("completed", True)
