"""What becomes of a run, on every database."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.engine import URL

from tailrace.core.event import Event, StreamState
from tailrace.errors import Conflict, Fenced, Malformed, RunEnded, RunNotFound, StreamClosed, TooLarge
from tailrace.features.runs.backend import LeaseState
from tailrace.features.runs.model import MAX_JSON_DEPTH, RunStatus, run_stream
from tailrace.features.runs.store import RunQuery
from tailrace.sql import migrate
from tests.features.runs.support import LEASE, Runs, data_of, runs_on
from tests.support.wait import deadline


@pytest.fixture
def tables(any_database: URL) -> URL:
    migrate.upgrade(any_database)
    return any_database


async def claimed(runs: Runs, run_id: str = "r1") -> int:
    await runs.service.create(owner="ada", kind="report", title="Maí ☂", metadata={"a": [1, None]}, run_id=run_id)
    return (await runs.service.begin(run_id, producer="p1")).epoch


async def test_a_run_is_kept_as_it_was_made_and_ends_once_in_sql_and_log(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        epoch = await claimed(runs)
        await runs.log.append(run_stream("r1"), [Event("work", 1)], owner_epoch=epoch)

        done = await runs.service.finish("r1", epoch, RunStatus.COMPLETED, result={"pages": 3})

        kept = await runs.service.get("r1")
        assert kept == done
        assert (kept.owner, kept.kind, kept.title, kept.metadata) == ("ada", "report", "Maí ☂", {"a": [1, None]})
        assert (kept.status, kept.result, kept.sealed) == (RunStatus.COMPLETED, {"pages": 3}, True)
        assert kept.created_at <= (kept.started_at or 0) <= (kept.ended_at or 0)
        assert await runs.types("r1") == ["work", "run.completed"]
        assert data_of((await runs.events("r1"))[-1])["result"] == {"pages": 3}
        assert (await runs.log.info(run_stream("r1"))).state is StreamState.CLOSED


async def test_ending_in_the_same_way_again_is_once_and_in_another_is_refused(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        epoch = await claimed(runs)
        first = await runs.service.finish("r1", epoch, RunStatus.FAILED, error="no\0 \ud800paper")

        assert await runs.service.finish("r1", epoch, RunStatus.FAILED, error="no\0 \ud800paper") == first
        with pytest.raises(RunEnded):
            await runs.service.finish("r1", epoch, RunStatus.COMPLETED)
        with pytest.raises(RunEnded):
            await runs.service.begin("r1", producer="p2")
        assert await runs.types("r1") == ["run.failed"]


async def test_who_ends_a_run_in_the_same_way_does_not_cut_off_its_producers_last_events(sqlite: URL) -> None:
    async with deadline(60), runs_on(sqlite) as runs:
        epoch = await claimed(runs)
        await runs.service.finish("r1", epoch, RunStatus.COMPLETED, seal=False)

        assert not (await runs.service.finish("r1", None, RunStatus.COMPLETED)).sealed
        await runs.log.append(run_stream("r1"), [Event("work", 1)], owner_epoch=epoch)
        assert (await runs.service.finish("r1", epoch, RunStatus.COMPLETED)).sealed

        assert await runs.types("r1") == ["work", "run.completed"]


async def test_a_lease_of_an_epoch_that_no_claim_has_is_not_kept_and_fences_nobody(sqlite: URL) -> None:
    async with deadline(60), runs_on(sqlite) as runs:
        epoch = await claimed(runs)
        await runs.service.create(owner="ada", run_id="queued")

        bad = await runs.service.renew([("r1", epoch + 1), ("queued", 0), ("queued", 1), ("none", 1)])

        assert set(bad.values()) == {LeaseState(fenced=True)}
        assert await runs.service.renew([("r1", epoch)]) == {"r1": LeaseState()}
        assert await runs.service.leases.alive(["r1", "queued", "none"]) == [True, False, False]


async def test_what_one_database_cannot_keep_or_find_is_the_same_on_all(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        epoch = await claimed(runs)

        for owner in ("Ada", "ada\0", "ada "):
            assert await runs.service.find(RunQuery(owner=owner)) == []
        with pytest.raises(Malformed):
            await runs.service.create(owner="ada", metadata={"deep": deep(MAX_JSON_DEPTH)})
        with pytest.raises(Malformed):
            await runs.service.finish("r1", epoch, RunStatus.COMPLETED, result=deep(MAX_JSON_DEPTH + 1))
        metadata = {"deep": deep(MAX_JSON_DEPTH - 1), "pair": (1, 2)}
        made = await runs.service.create(owner="ada", metadata=metadata, run_id="r2")
        assert await runs.service.create(owner="ada", metadata=metadata, run_id="r2") == made
        done = await runs.service.finish("r1", epoch, RunStatus.COMPLETED, result=deep(MAX_JSON_DEPTH))

        assert await runs.service.get("r2") == made
        assert await runs.service.get("r1") == done


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_of_many_who_claim_one_gets_the_run(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        await runs.service.create(owner="ada", run_id="r1")

        answers = await asyncio.gather(
            *(runs.service.begin("r1", producer=f"p{n}") for n in range(6)), return_exceptions=True
        )

        won = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert [claim.epoch for claim in won] == [1]
        assert all(isinstance(answer, Conflict) for answer in answers if isinstance(answer, BaseException))


async def test_the_same_producer_has_its_claim_already(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        epoch = await claimed(runs)

        assert (await runs.service.begin("r1", producer="p1")).epoch == epoch


async def test_a_silent_producer_is_taken_over_from_and_fenced_out(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        old = await claimed(runs)
        with pytest.raises(Conflict):
            await runs.service.begin("r1", producer="p2")
        runs.clock.now += LEASE + 1

        new = (await runs.service.begin("r1", producer="p2")).epoch
        await runs.log.append(run_stream("r1"), [Event("work", "new")], owner_epoch=new)

        with pytest.raises(Fenced):
            await runs.log.append(run_stream("r1"), [Event("work", "old")], owner_epoch=old)
        with pytest.raises(Fenced):
            await runs.service.finish("r1", old, RunStatus.COMPLETED)
        assert await runs.service.renew([("r1", old)]) == {"r1": LeaseState(fenced=True)}


async def test_a_queued_run_is_cancelled_at_once_and_a_running_one_by_its_producer(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        await runs.service.create(owner="ada", run_id="waiting")
        epoch = await claimed(runs)

        assert (await runs.service.cancel("waiting")).status is RunStatus.CANCELLED
        asked = await runs.service.cancel("r1")
        assert asked.status is RunStatus.RUNNING
        assert asked.cancel_requested_at is not None
        assert (await runs.service.renew([("r1", epoch)]))["r1"].cancel
        assert (await runs.service.finish("r1", epoch, RunStatus.CANCELLED)).status is RunStatus.CANCELLED
        assert await runs.types("waiting") == await runs.types("r1") == ["run.cancelled"]
        assert (await runs.service.cancel("r1")).status is RunStatus.CANCELLED


async def test_a_producer_flushes_before_its_run_is_sealed(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        epoch = await claimed(runs)

        early = await runs.service.finish("r1", epoch, RunStatus.COMPLETED, seal=False)
        assert (early.status, early.sealed) == (RunStatus.COMPLETED, False)
        assert await runs.service.renew([("r1", epoch)]) == {"r1": LeaseState()}
        await runs.log.append(run_stream("r1"), [Event("late", 1)], owner_epoch=epoch)
        assert (await runs.service.finish("r1", epoch, RunStatus.COMPLETED)).sealed

        assert await runs.types("r1") == ["late", "run.completed"]
        with pytest.raises(StreamClosed):
            await runs.log.append(run_stream("r1"), [Event("too-late", 1)], owner_epoch=epoch)
        assert (await runs.service.renew([("r1", epoch)]))["r1"].fenced


async def test_whoever_ends_it_without_a_claim_fences_the_producer_out(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        epoch = await claimed(runs)

        await runs.service.finish("r1", None, RunStatus.FAILED, error="by hand")

        with pytest.raises(RunEnded):
            await runs.service.finish("r1", epoch, RunStatus.COMPLETED)


async def test_pages_of_runs_hold_each_once_the_newest_first(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        for number in range(7):
            owner, kind = ("ada", "a") if number % 2 else ("bob", "b")
            await runs.service.create(owner=owner, kind=kind, run_id=f"r{number}")
        await runs.service.begin("r3", producer="p")

        seen: list[str] = []
        query = RunQuery(limit=3)
        while page := await runs.service.find(query):
            seen += [run.id for run in page]
            query = RunQuery(limit=3, after=(page[-1].created_at, page[-1].id))

        newest_first = sorted(await runs.service.find(RunQuery(limit=99)), key=lambda run: (-run.created_at, run.id))
        assert sorted(seen) == [f"r{number}" for number in range(7)]
        assert {run.id for run in newest_first} == set(seen)
        assert [run.id for run in await runs.service.find(RunQuery(statuses=frozenset({RunStatus.RUNNING})))] == ["r3"]
        assert {run.id for run in await runs.service.find(RunQuery(owner="ada"))} == {"r1", "r3", "r5"}
        assert len(await runs.service.find(RunQuery(kind="b"))) == 4
        first = min(run.created_at for run in newest_first)
        assert await runs.service.find(RunQuery(created_before=first)) == []


async def test_an_id_names_one_run_and_its_case_counts(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        made = await runs.service.create(owner="ada", run_id="r1")

        assert (await runs.service.create(owner="ada", run_id="r1")).id == made.id
        with pytest.raises(Conflict):
            await runs.service.create(owner="bob", run_id="r1")
        assert (await runs.service.create(owner="bob", run_id="R1")).owner == "bob"
        with pytest.raises(RunNotFound):
            await runs.service.get("r2")


async def test_what_is_too_large_or_unreadable_is_refused(tables: URL) -> None:
    async with deadline(60), runs_on(tables) as runs:
        with pytest.raises(TooLarge):
            await runs.service.create(owner="ada", metadata={"text": "x" * 20_000})
        with pytest.raises(Malformed):
            await runs.service.create(owner="ada", title="x" * 501)
        with pytest.raises(Malformed):
            await runs.service.create(owner="")
        assert await runs.service.find(RunQuery()) == []
