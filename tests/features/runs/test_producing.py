"""Code that is a run: how it ends, how it is stopped, and that nothing it needs holds it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tailrace.client.spool import Entry, SpoolFile, orphans
from tailrace.core.codec import encode
from tailrace.core.event import Event, StreamState
from tailrace.core.names import StreamName
from tailrace.errors import Conflict, Fenced, LogUnavailable, RunEnded
from tailrace.eventlog.base import Appended
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.runs.active import current_run, emit
from tailrace.features.runs.ending import RunEnd
from tailrace.features.runs.model import Run, RunStatus
from tailrace.features.runs.steps import RunCancelled
from tailrace.features.runs.workers import Reaper, Sealer
from tests.support.producing import Site, site
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import deadline, eventually


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    log = MemoryLog()
    async with site(tmp_path, log) as made:
        yield made
    await log.aclose()


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_a_run_that_comes_to_its_end_is_completed(here: Site) -> None:
    async with here.runs() as runs, runs.open(title="nightly", run_id="1", metadata={"n": 1}) as run:
        assert current_run() is run
        async with run.step("plan"):
            assert emit("note", {"n": 1})
        run.result = {"rows": 3}
    assert current_run() is None

    stored = await here.service.get("1")
    assert (stored.status, stored.title, stored.result, stored.sealed) == (
        RunStatus.COMPLETED,
        "nightly",
        {"rows": 3},
        True,
    )
    assert [type_ for type_, _ in await here.events("1")] == [
        "run.started",
        "step.started",
        "note",
        "step.completed",
        "run.completed",
    ]
    assert (await here.log.info(StreamName.parse("run:1"))).state is StreamState.CLOSED


async def test_a_run_whose_code_fails_is_failed_and_the_error_goes_on(here: Site) -> None:
    async with here.runs() as runs:
        with pytest.raises(ValueError, match="no rows"):
            async with runs.open(run_id="1"):
                raise ValueError("no rows")

    stored = await here.service.get("1")
    assert (stored.status, stored.error) == (RunStatus.FAILED, "ValueError: no rows")
    assert (await here.events("1"))[-1][0] == "run.failed"


@pytest.mark.parametrize(
    ("result", "why"),
    [("x" * 70_000, "larger than 65536 bytes"), (deep(64), "cannot be kept"), ({1, object()}, "no JSON")],
    ids=["large", "deep", "no JSON"],
)
async def test_a_result_that_cannot_be_kept_makes_its_run_fail_and_says_why(
    here: Site, result: object, why: str
) -> None:
    async with here.runs() as runs, runs.open(run_id="1") as run:
        run.result = result

    stored = await here.service.get("1")
    assert (stored.status, stored.result, stored.sealed) == (RunStatus.FAILED, None, True)
    assert why in (stored.error or "")
    assert (await here.events("1"))[-1][0] == "run.failed"


async def test_a_cancel_stops_the_task_and_what_is_behind_the_run_goes_on(here: Site) -> None:
    cleaned = False

    async def work() -> str:
        nonlocal cleaned
        async with here.runs() as runs:
            try:
                async with runs.open(run_id="1") as run, run.step("wait"):
                    try:
                        await asyncio.Event().wait()
                    finally:
                        cleaned = True
            except RunCancelled:
                await asyncio.sleep(0)
                return "stopped"
        return "went on"

    task = asyncio.create_task(work())
    await _running(here, "1")
    await here.service.cancel("1")
    async with deadline(30):
        assert await task == "stopped"

    assert cleaned
    assert (await here.service.get("1")).status is RunStatus.CANCELLED
    assert [type_ for type_, _ in await here.events("1")][-2:] == ["step.cancelled", "run.cancelled"]


async def test_a_task_that_is_cancelled_by_others_stays_cancelled(here: Site) -> None:
    async def work() -> None:
        async with runs.open(run_id="1"):
            await asyncio.Event().wait()

    async with here.runs() as runs:
        task = asyncio.create_task(work())
        await _running(here, "1")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    stored = await here.service.get("1")
    assert (stored.status, stored.error) == (RunStatus.CANCELLED, "its code was stopped: CancelledError")


async def test_a_run_of_a_generator_that_is_closed_in_another_task_ends(here: Site) -> None:
    async def work() -> AsyncGenerator[None, None]:
        async with runs.open(run_id="1"):
            yield

    async with here.runs() as runs:
        parts = work()

        async def begin() -> None:
            await anext(parts)

        async def close() -> None:
            await parts.aclose()

        for step in (begin, close):
            await asyncio.create_task(step())

    assert (await here.service.get("1")).status is RunStatus.CANCELLED


async def test_an_end_whose_caller_is_cancelled_is_told_all_the_same(here: Site) -> None:
    async with here.runs() as runs:
        active = await runs.begin((await runs.create(run_id="1")).id)
        ending = asyncio.create_task(runs.end(active))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending

    assert (await here.service.get("1")).status is RunStatus.COMPLETED


async def test_runs_whose_closing_is_cancelled_leave_nothing_behind(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def away(*given: object, **more: object) -> Run:
        asked.set()
        raise LogUnavailable("away")

    runs = here.runs(spool=tmp_path / "spool", end_seconds=600)
    active = await runs.begin((await runs.create(run_id="1")).id)
    monkeypatch.setattr(here.service, "finish", away)
    await runs.end(active)
    closing = asyncio.create_task(runs.aclose())
    asked.clear()
    async with deadline(60):
        await asked.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("tailrace-")] == []
    assert await asyncio.to_thread(noted, tmp_path / "spool") == ["end:1:1"]


def noted(folder: Path) -> list[str]:
    """What is noted in the files that nobody has."""
    spools = list(orphans(folder, "here"))
    for spool in spools:
        spool.close()
    return [key for spool in spools for key in spool.notes]


async def test_a_run_that_was_lost_is_fenced_out_and_nothing_comes_behind_its_end(here: Site) -> None:
    async with here.runs() as runs:

        async def work() -> None:
            async with runs.open(run_id="1") as run:
                await here.service.lose("1", run.epoch)
                await asyncio.Event().wait()

        with pytest.raises(Fenced):
            async with deadline(30):
                await work()

    events = await here.events("1")
    assert events[-1][0] == "run.lost"
    assert (await here.service.get("1")).status is RunStatus.LOST


async def test_one_producer_has_a_run_and_an_ended_one_has_none(here: Site) -> None:
    async with here.runs() as runs, here.runs() as others:
        run = await runs.create(run_id="1")
        async with runs.claim(run.id):
            with pytest.raises(Conflict):
                async with others.claim(run.id):
                    pass
        with pytest.raises(RunEnded):
            async with others.claim(run.id):
                pass


async def test_redis_away_in_mid_run_leaves_it_unharmed_and_the_whole_history_is_there_afterwards(
    tmp_path: Path, start_redis: StartRedis
) -> None:
    server = await start_redis()
    log = RedisLog.connect(server.url)
    async with site(tmp_path, log) as there:
        async with there.runs() as runs:
            async with runs.open(run_id="1") as run:
                for n in range(100):
                    run.emit("note", n)
                await server.kill()
                begun = time.monotonic()
                for n in range(100, 1_100):
                    assert run.emit("note", n)
                emitted = time.monotonic() - begun
            assert (await there.service.get("1")).status is RunStatus.COMPLETED
            assert not (await there.service.get("1")).sealed
            await server.start()

            async def sealed() -> bool:
                return (await there.service.get("1")).sealed

            await eventually(sealed, 60, every=0.1)
        events = await there.events("1")
    await log.aclose()

    assert [data for type_, data in events if type_ == "note"] == list(range(1_100))
    assert (events[0][0], events[-1][0]) == ("run.started", "run.completed")
    assert emitted < 60


async def test_away_beyond_the_spool_the_newest_are_refused_counted_and_told_at_their_place(
    tmp_path: Path, start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_redis()
    log = RedisLog.connect(server.url)
    text = "x" * 900_000
    async with site(tmp_path, log) as there:
        async with there.runs() as runs:
            async with runs.open(run_id="1") as run:
                await server.kill()
                taken = [run.emit("note", [n, text]) for n in range(40)]
            assert (await there.service.get("1")).status is RunStatus.COMPLETED
            await server.start()

            async def sealed() -> bool:
                return (await there.service.get("1")).sealed

            await eventually(sealed, 60, every=0.1)
        events = await there.events("1")
    await log.aclose()

    fitted = sum(taken)
    assert 0 < fitted < 40
    assert [data[0] for type_, data in events if type_ == "note"] == list(range(fitted))
    assert [type_ for type_, _ in events[-2:]] == ["events.skipped", "run.completed"]
    assert events[-2][1]["count"] == 40 - fitted
    assert caplog.text.count("the spool is full") == 1


@asynccontextmanager
async def _looked_after(there: Site) -> AsyncIterator[None]:
    """What a gateway does for runs goes on."""
    reaper, sealer = Reaper(there.service, period=0.05), Sealer(there.service, period=0.05)
    tasks = [asyncio.create_task(work.run()) for work in (reaper, sealer)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sealed(there: Site, run_id: str) -> None:
    async def sealed() -> bool:
        return (await there.service.get(run_id)).sealed

    await eventually(sealed, 60, every=0.1)


async def _end_while_redis_is_away(there: Site, server: RedisServer, spool: Path | None) -> None:
    """A run of a process that ends before Redis is back."""
    runs = there.runs(spool=spool)
    async with runs.open(run_id="1") as run:
        run.emit("note", 0)
        await _running(there, "1")
        await server.kill()
        for n in range(1, 500):
            assert run.emit("note", n)
        run.result = {"rows": 500}
    await runs.aclose(flush_seconds=0.1)
    assert (await there.service.get("1")).status is RunStatus.COMPLETED


async def test_a_process_that_ends_while_redis_is_away_leaves_the_rest_to_the_next_one(
    tmp_path: Path, start_redis: StartRedis
) -> None:
    server = await start_redis({"appendfsync": "no"})
    log = RedisLog.connect(server.url)
    async with site(tmp_path, log, lease_seconds=1.0) as there:
        await _end_while_redis_is_away(there, server, tmp_path / "spool")
        await server.start()

        async def over() -> bool:
            (alive,) = await there.service.leases.alive(["1"])
            return not alive

        await eventually(over, 60)
        async with _looked_after(there):
            # The reaper holds it from now on.
            await _running(there, "1")
            assert not (await there.service.get("1")).sealed

            async with there.runs(spool=tmp_path / "spool"):
                await _sealed(there, "1")
        events = await there.events("1")
    await log.aclose()

    assert [data for type_, data in events if type_ == "note"] == list(range(500))
    assert [type_ for type_, _ in events if type_ != "note"] == ["run.started", "run.completed"]
    assert events[-1][1]["result"] == {"rows": 500}
    assert list((tmp_path / "spool").iterdir()) == []


async def test_without_a_folder_what_is_lost_with_the_process_is_logged_and_told_before_the_end(
    tmp_path: Path, start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_redis({"appendfsync": "no"})
    log = RedisLog.connect(server.url)
    async with site(tmp_path, log, lease_seconds=1.0) as there:
        await _end_while_redis_is_away(there, server, None)
        (lost,) = [each for each in caplog.records if each.message.startswith("emitted events are lost")]
        await server.start()
        async with _looked_after(there):
            await _sealed(there, "1")
        events = await there.events("1")
    await log.aclose()

    notes = [data for type_, data in events if type_ == "note"]
    assert notes == list(range(len(notes)))
    assert len(notes) + lost.count >= 500  # type: ignore[attr-defined]
    assert [type_ for type_, _ in events[-2:]] == ["events.skipped", "run.completed"]


async def test_an_end_that_comes_too_late_changes_nothing_and_is_logged_and_counted(
    here: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    async with here.runs() as runs:
        run = await runs.begin((await runs.create(run_id="here")).id)
        await here.service.lose("here", run.epoch)
        await runs.end(run)
        assert runs.refused_ends == 1
    run_id, end = "left", RunEnd(run="left", epoch=1, status=RunStatus.COMPLETED)
    async with here.runs() as others:
        left = await others.begin((await others.create(run_id=run_id)).id)
        await here.service.lose(run_id, left.epoch)
    await asyncio.to_thread(_leave, spool, end)

    async with here.runs(spool=spool) as following:
        await eventually(lambda: following.refused_ends == 1, 60)

    assert (await here.service.get(run_id)).status is RunStatus.LOST
    assert (await here.events(run_id))[-1][0] == "run.lost"
    refused = [each for each in caplog.records if each.message == "a run did not end as its code did"]
    assert [(each.run, each.code) for each in refused] == [  # type: ignore[attr-defined]
        ("here", "FENCED"),
        ("left", "FENCED"),
    ]
    assert list(spool.iterdir()) == []


async def test_an_end_that_was_left_does_not_wait_for_events_of_others_that_nobody_takes(tmp_path: Path) -> None:
    class Picky(MemoryLog):
        async def append(self, stream: StreamName, events: Sequence[Event], **more: Any) -> list[Appended]:
            if stream == "run:stuck":
                raise LogUnavailable("not now")
            return await super().append(stream, events, **more)

    def leave() -> None:
        stuck = Entry.of(StreamName.parse("run:stuck"), Event("note", encode(1, max_bytes=10), "u"))
        _leave(tmp_path / "spool", RunEnd(run="stuck", epoch=1, status=RunStatus.COMPLETED), stuck)
        _leave(tmp_path / "spool", RunEnd(run="1", epoch=1, status=RunStatus.COMPLETED))

    log = Picky()
    async with site(tmp_path, log) as there:
        await there.service.create(run_id="1")
        await there.service.begin("1", producer="dead")
        await asyncio.to_thread(leave)

        async def ended() -> bool:
            return (await there.service.get("1")).sealed

        runs = there.runs(spool=tmp_path / "spool")
        await runs.recover()
        await eventually(ended, 60)
        await runs.aclose(flush_seconds=0)
    await log.aclose()


def _leave(folder: Path, end: RunEnd, *entries: Entry) -> None:
    """What a process leaves that could not tell how its run ended."""
    file = SpoolFile.create(folder, "emit", "here")
    file.put(entries)
    file.note(end.key, end.note())
    file.close()


async def _running(here: Site, run_id: str) -> None:
    """Wait until a run is somebody's."""

    async def running() -> bool:
        (alive,) = await here.service.leases.alive([run_id])
        return alive

    await eventually(running, 60)
