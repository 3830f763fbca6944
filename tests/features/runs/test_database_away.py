"""The database is really away while code is a run: only to begin waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.errors import DatabaseUnavailable
from tailrace.eventlog.redis.leases import RedisLeases
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.runs.local import LocalRuns
from tailrace.features.runs.model import Run, RunStatus
from tailrace.features.runs.producing import Runs
from tailrace.features.runs.producing_sync import RunsSync
from tailrace.features.runs.workers import Reaper, Sealer
from tailrace.sql import migrate
from tests.support.databases import DatabaseServer, StartDatabase
from tests.support.redis_servers import RedisServer
from tests.support.wait import deadline, eventually

LEASE = 2.0


@pytest.fixture
def database(request: pytest.FixtureRequest) -> DatabaseServer:
    """A server that the test may stop: PostgreSQL unless it names another."""
    start: StartDatabase = request.getfixturevalue(f"start_{getattr(request, 'param', 'postgresql')}")
    server = start()
    server.url = server.create_database()
    migrate.upgrade(server.url)
    return server


class Local(LocalRuns):
    """Runs of one producing process, with connections of its own."""

    log: RedisLog
    run_leases: RedisLeases

    @classmethod
    def connect(cls, database: DatabaseServer, redis: RedisServer, prefix: str, folder: Path) -> Local:
        log = RedisLog.connect(redis.url, prefix=prefix)
        run_leases = RedisLeases(log.topology, prefix=prefix)
        url = database.url.render_as_string(hide_password=False)
        options: dict[str, Any] = {"owner": "ada", "data_dir": folder, "lease_seconds": LEASE, "timeout": 2}
        made = cls.on(url, log, run_leases.runs, **options)
        assert isinstance(made, Local)
        made.log, made.run_leases = log, run_leases
        return made

    async def aclose(self) -> None:
        await super().aclose()
        await self.run_leases.aclose()
        await self.log.aclose()


class Place:
    """Runs on a database and a Redis, looked after as a gateway does."""

    def __init__(self, connect: Callable[[], Local]) -> None:
        self.backend = connect()
        self.log = self.backend.log
        self._connect = connect

    def runs(self, **options: Any) -> Runs:
        """A producing process."""
        backend = self._connect()
        return Runs(backend, DirectLog.on(backend.log), **{"begin_seconds": 60.0, **options})

    async def ended(self, run_id: str) -> Run:
        """The run, when its stream has its end."""

        async def sealed() -> Run | None:
            run = await self.backend.get(run_id)
            return run if run.sealed else None

        run: Run | None = await eventually(sealed, 60, every=0.1)
        assert run is not None
        return run

    async def events(self, run_id: str) -> list[tuple[str, bytes]]:
        async with Tailrace.on(DirectLog.on(self.log)) as client:
            return [(each.type, each.data) for each in await client.history(f"run:{run_id}").records()]


@asynccontextmanager
async def in_threads(there: Place) -> AsyncIterator[RunsSync]:
    """A producing process whose runs are in threads."""
    runs = await asyncio.to_thread(RunsSync, there.runs)
    try:
        yield runs
    finally:
        await asyncio.to_thread(runs.close)


@asynccontextmanager
async def place(database: DatabaseServer, redis: RedisServer, prefix: str, folder: Path) -> AsyncIterator[Place]:
    made = Place(lambda: Local.connect(database, redis, prefix, folder))
    reaper, sealer = Reaper(made.backend.service, period=0.1), Sealer(made.backend.service, period=0.1)
    tasks = [asyncio.create_task(work) for work in (reaper.run(), sealer.run())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.backend.aclose()


async def test_a_run_begins_as_soon_as_the_database_is_there_and_not_without_it(
    database: DatabaseServer, redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(database.stop)
    async with place(database, redis70, key_prefix, tmp_path) as there:
        entered = False
        async with there.runs(begin_seconds=1.0) as runs:
            with pytest.raises(DatabaseUnavailable):
                async with runs.open(run_id="never"):
                    entered = True
        assert not entered

    async with place(database, redis70, key_prefix, tmp_path) as there, there.runs() as runs:

        async def work() -> None:
            async with runs.open(run_id="1") as run:
                run.emit("note", 1)

        working = asyncio.create_task(work())
        await asyncio.to_thread(database.start)
        async with deadline(60):
            await working
        assert (await there.ended("1")).status is RunStatus.COMPLETED


def in_a_thread(runs: RunsSync, begun: threading.Event, over: threading.Event) -> None:
    """A run of a thread that says something all the time."""
    with runs.open(run_id="thread") as run:
        begun.set()
        while not over.wait(0.05):
            assert run.emit("note", 1)
        run.result = {"rows": 4}


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
async def test_a_run_goes_on_without_the_database_for_longer_than_its_lease_and_ends_when_it_is_back(
    database: DatabaseServer, redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    begun_there, over = threading.Event(), threading.Event()
    async with (
        place(database, redis70, key_prefix, tmp_path) as there,
        there.runs() as runs,
        in_threads(there) as threads,
    ):
        time = asyncio.get_running_loop().time
        thread = asyncio.create_task(asyncio.to_thread(in_a_thread, threads, begun_there, over))

        async def work() -> None:
            async with runs.open(run_id="failed"):
                async with runs.open(run_id="1") as run:
                    await eventually(begun_there.is_set, 60)
                    run.emit("note", 1)
                    await asyncio.to_thread(database.stop)
                    begun = time()

                    def said_for_long() -> bool:
                        assert run.emit("note", 2)
                        return time() - begun > 2 * LEASE

                    await eventually(said_for_long, 60, every=0.05)
                    run.result = {"rows": 3}
                # All end while it is away: none is held up.
                over.set()
                raise ValueError("no rows")

        with pytest.raises(ValueError, match="no rows"):
            async with deadline(90):
                await work()
        async with deadline(60):
            await thread

        # What was said is read while nobody knows yet how it ended.
        notes = [data for type_, data in await there.events("1") if type_ == "note"]
        assert notes[0] == b"1"
        await asyncio.to_thread(database.start)
        done, failed, threaded = [await there.ended(run_id) for run_id in ("1", "failed", "thread")]

        assert (done.status, done.result, done.owner_epoch) == (RunStatus.COMPLETED, {"rows": 3}, 1)
        assert (threaded.status, threaded.result, threaded.owner_epoch) == (RunStatus.COMPLETED, {"rows": 4}, 1)
        assert (failed.status, failed.error) == (RunStatus.FAILED, "ValueError: no rows")
        events = await there.events("1")
        assert [data for type_, data in events if type_ == "note"] == notes
        assert [type_ for type_, _ in events if type_ != "note"] == ["run.started", "run.completed"]
        assert (await there.events("failed"))[-1][0] == "run.failed"


async def end_without(database: DatabaseServer, runs: dict[str, Runs]) -> None:
    """In each process a run of its name, all of which end when the database is away."""
    async with AsyncExitStack() as stack:
        open_runs = [await stack.enter_async_context(each.open(run_id=name)) for name, each in runs.items()]
        await asyncio.to_thread(database.stop)
        for run in open_runs:
            run.emit("note", 1)
            run.result = {"rows": 3}


async def test_how_a_run_ended_is_told_when_the_database_is_back_or_by_the_next_process_or_its_loss_is(
    database: DatabaseServer,
    redis70: RedisServer,
    key_prefix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place(database, redis70, key_prefix, tmp_path) as there:
        spool = tmp_path / "spool"
        waits, forgets = there.runs(), there.runs(end_seconds=0.1)
        leaves = there.runs(end_seconds=0.1, spool=spool)
        async with deadline(90):
            await end_without(database, {"waits": waits, "leaves": leaves, "forgets": forgets})
            closing = asyncio.create_task(waits.aclose(flush_seconds=30))
            await leaves.aclose(flush_seconds=0.1)
            await forgets.aclose(flush_seconds=0.1)
        said = {each.message: each for each in caplog.records}
        kept = said["ends of runs are kept: the next process on the folder tells them"]
        lost = said["ends of runs are lost: they could not be told, and no folder keeps them"]
        assert (kept.runs, lost.runs) == (["leaves"], ["forgets"])  # type: ignore[attr-defined]

        await asyncio.to_thread(database.start)
        async with deadline(90):
            await closing
        assert (await there.backend.get("waits")).status is RunStatus.COMPLETED
        assert [type_ for type_, _ in await there.events("waits")] == ["run.started", "note", "run.completed"]
        # By now the lease of the one that left would be over, too.
        assert (await there.ended("forgets")).status is RunStatus.LOST
        assert (await there.backend.get("leaves")).status is RunStatus.RUNNING
        async with there.runs(spool=spool) as following:
            done = await there.ended("leaves")
            assert following.refused_ends == 0

        assert (done.status, done.result, done.owner_epoch) == (RunStatus.COMPLETED, {"rows": 3}, 1)
        assert [type_ for type_, _ in await there.events("leaves")][-1] == "run.completed"
        assert list(spool.iterdir()) == []
