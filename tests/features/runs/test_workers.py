"""Runs whose producer is gone, and ends that the log does not have yet."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.engine import URL

from tailrace.core.event import Event
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.errors import Conflict, Fenced, LogUnavailable, StreamClosed
from tailrace.eventlog.base import Appended
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.run_leases import Held, MemoryRunLeases
from tailrace.features.runs.backend import LeaseState
from tailrace.features.runs.model import RunStatus, run_stream
from tailrace.features.runs.store import End
from tailrace.features.runs.workers import GRACE_MS, Reaper, Sealer
from tests.features.runs.support import LEASE, Clock, Runs, data_of, runs_on


class Store(MemoryRunLeases):
    """Leases that can be away, or lose their memory."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.away = False

    async def expired(self, limit: int) -> list[Held]:
        self._check()
        return await super().expired(limit)

    async def alive(self, run_ids: object) -> list[bool]:
        self._check()
        return await super().alive(run_ids)  # type: ignore[arg-type]

    def forget_all(self) -> None:
        for each in (self._until, self._epochs, self._cancels, self._ended):
            each.clear()

    def _check(self) -> None:
        if self.away:
            raise LogUnavailable("away")


async def claimed(runs: Runs, run_id: str = "r1") -> int:
    await runs.service.create(owner="ada", run_id=run_id)
    return (await runs.service.begin(run_id, producer="p1")).epoch


async def step_for(runs: Runs, reaper: Reaper, seconds: float) -> int:
    """Let time pass as the reaper sees it."""
    lost = 0
    for _ in range(round(seconds)):
        runs.clock.now += 1
        lost += await reaper.step()
    return lost


async def test_a_run_whose_producer_is_silent_for_a_lease_is_lost_and_told(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        reaper = Reaper(runs.service, clock=runs.clock)
        await step_for(runs, reaper, LEASE + 1)
        epoch = await claimed(runs)

        assert await step_for(runs, reaper, LEASE - 1) == 0
        assert await step_for(runs, reaper, 1) == 1

        run = await runs.service.get("r1")
        assert (run.status, run.sealed, run.owner_epoch) == (RunStatus.LOST, True, epoch + 1)
        assert await runs.types("r1") == ["run.lost"]
        assert data_of((await runs.events("r1"))[0])["status"] == "lost"
        with pytest.raises(Fenced):
            await runs.service.finish("r1", epoch, RunStatus.COMPLETED)
        with pytest.raises(StreamClosed):
            await runs.log.append(run_stream("r1"), [Event("work", 1)], owner_epoch=epoch)
        assert (await runs.service.renew([("r1", epoch)]))["r1"].fenced


async def test_a_run_that_is_renewed_is_not_lost(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        reaper = Reaper(runs.service, clock=runs.clock)
        epoch = await claimed(runs)

        for _ in range(40):
            assert await runs.service.renew([("r1", epoch)]) == {"r1": LeaseState()}
            assert await step_for(runs, reaper, 2) == 0


async def test_an_outage_of_the_store_loses_no_run(sqlite: URL) -> None:
    clock = Clock()
    store = Store(clock)
    async with runs_on(sqlite, leases=store) as runs:
        runs.clock = clock
        reaper = Reaper(runs.service, clock=clock)
        await step_for(runs, reaper, LEASE + 1)
        epoch = await claimed(runs)
        store.away = True
        for _ in range(60):
            clock.now += 1
            with pytest.raises(LogUnavailable):
                await reaper.step()

        store.away = False
        assert await step_for(runs, reaper, 3) == 0
        await runs.service.renew([("r1", epoch)])

        assert await step_for(runs, reaper, LEASE - 1) == 0
        assert (await runs.service.get("r1")).status is RunStatus.RUNNING


async def test_a_reaper_that_stood_still_itself_loses_no_run(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        reaper = Reaper(runs.service, clock=runs.clock)
        await step_for(runs, reaper, LEASE + 1)
        epoch = await claimed(runs)

        runs.clock.now += 3_600
        assert await reaper.step() == 0
        await runs.service.renew([("r1", epoch)])
        assert await step_for(runs, reaper, LEASE - 1) == 0


async def test_a_store_that_lost_its_memory_gives_every_run_a_whole_lease(sqlite: URL) -> None:
    clock = Clock()
    store = Store(clock)
    async with runs_on(sqlite, leases=store) as runs:
        runs.clock = clock
        reaper = Reaper(runs.service, clock=clock)
        await step_for(runs, reaper, LEASE + 1)
        await claimed(runs)
        store.forget_all()

        assert await step_for(runs, reaper, LEASE - 1) == 0
        assert await step_for(runs, reaper, 2 * LEASE) == 1


async def test_an_end_that_the_log_does_not_have_is_sealed_later(sqlite: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(MemoryLog):
        away = False

        async def append(self, *args: Any, **named: Any) -> list[Appended]:
            if self.away:
                raise LogUnavailable("away")
            return await super().append(*args, **named)

    monkeypatch.setattr("tailrace.features.runs.workers.GRACE_MS", -GRACE_MS)
    log = Away()
    async with runs_on(sqlite, log=log) as runs:
        epoch = await claimed(runs)
        log.away = True
        assert not (await runs.service.finish("r1", epoch, RunStatus.COMPLETED)).sealed
        log.away = False
        sealer = Sealer(runs.service)
        # Its producer may still have events to append.
        assert await sealer.step() == 0

        runs.clock.now += LEASE + 1
        assert await sealer.step() == 1

        assert (await runs.service.get("r1")).sealed
        assert await runs.types("r1") == ["run.completed"]
        assert await sealer.step() == 0
    await log.aclose()


async def ended_with_events_on_the_way(runs: Runs, hold_seconds: float = 0.0) -> int:
    """A run whose producer told its end and is heard of no more."""
    epoch = await claimed(runs)
    await runs.service.finish("r1", epoch, RunStatus.COMPLETED, seal=False, hold_seconds=hold_seconds)
    runs.clock.now += LEASE + 1
    return epoch


async def look_for(runs: Runs, reaper: Reaper, sealer: Sealer, seconds: float) -> None:
    """Let time pass as both workers see it."""
    for _ in range(round(seconds)):
        runs.clock.now += 1
        await reaper.step()
        await sealer.step()


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.features.runs.workers.GRACE_MS", -GRACE_MS)


@pytest.mark.usefixtures("no_grace")
async def test_events_that_a_dead_producer_left_on_its_disk_are_waited_for(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        reaper, sealer = Reaper(runs.service, clock=runs.clock), Sealer(runs.service)
        epoch = await ended_with_events_on_the_way(runs, hold_seconds=600)

        await look_for(runs, reaper, sealer, 3 * LEASE)

        assert not (await runs.service.get("r1")).sealed
        await runs.log.append(run_stream("r1"), [Event("late", 1)], owner_epoch=epoch)
        assert (await runs.service.finish("r1", epoch, RunStatus.COMPLETED)).sealed
        assert await runs.types("r1") == ["late", "run.completed"]


@pytest.mark.usefixtures("no_grace")
async def test_what_a_dead_producer_never_delivered_is_told_before_the_end(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        reaper, sealer = Reaper(runs.service, clock=runs.clock), Sealer(runs.service)
        await ended_with_events_on_the_way(runs)

        await look_for(runs, reaper, sealer, 3 * LEASE)

        run = await runs.service.get("r1")
        assert (run.status, run.sealed) == (RunStatus.COMPLETED, True)
        assert await runs.types("r1") == ["events.skipped", "run.completed"]
        assert data_of((await runs.events("r1"))[0]) == {"count": None, "reason": "its producer is gone"}


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("forgets", [False, True])
async def test_after_an_outage_a_producer_that_still_delivers_is_heard_before_its_run_is_sealed(
    sqlite: URL, forgets: bool
) -> None:
    clock = Clock()
    store = Store(clock)
    async with runs_on(sqlite, leases=store) as runs:
        runs.clock = clock
        reaper, sealer = Reaper(runs.service, clock=clock), Sealer(runs.service)
        await look_for(runs, reaper, sealer, LEASE + 1)
        epoch = await ended_with_events_on_the_way(runs)
        if forgets:
            store.forget_all()
        else:
            store.away = True
            with pytest.raises(LogUnavailable):
                await reaper.step()
            store.away = False

        await look_for(runs, reaper, sealer, LEASE - 2)
        assert not (await runs.service.get("r1")).sealed
        assert await runs.service.renew([("r1", epoch)]) == {"r1": LeaseState()}
        await look_for(runs, reaper, sealer, LEASE - 2)

        await runs.log.append(run_stream("r1"), [Event("late", 1)], owner_epoch=epoch)
        await runs.service.finish("r1", epoch, RunStatus.COMPLETED)
        assert await runs.types("r1") == ["late", "run.completed"]


async def test_a_second_wish_to_cancel_does_not_cut_off_what_is_on_the_way(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        epoch = await claimed(runs)
        await runs.service.cancel("r1")
        await runs.service.finish("r1", epoch, RunStatus.CANCELLED, seal=False)

        assert not (await runs.service.cancel("r1")).sealed

        await runs.log.append(run_stream("r1"), [Event("late", 1)], owner_epoch=epoch)
        await runs.service.finish("r1", epoch, RunStatus.CANCELLED)
        assert await runs.types("r1") == ["late", "run.cancelled"]


async def test_an_epoch_that_was_never_given_keeps_no_run_from_its_end(sqlite: URL) -> None:
    async with runs_on(sqlite) as runs:
        epoch = await claimed(runs)
        await runs.log.append(run_stream("r1"), [Event("work", 1)], owner_epoch=epoch + 5)

        run = await runs.service.finish("r1", epoch, RunStatus.COMPLETED)

        assert run.sealed
        assert await runs.types("r1") == ["work", "run.completed"]


async def test_a_run_that_cannot_be_sealed_holds_up_neither_others_nor_the_sealer(sqlite: URL) -> None:
    small = Kinds([StreamKind(name="run", max_event_bytes=300)])
    async with runs_on(sqlite, log=MemoryLog(kinds=small)) as runs:
        await runs.service.create(owner="ada", run_id="large")
        await runs.service.create(owner="ada", run_id="small")
        end = End(status=RunStatus.FAILED, error="x" * 1_000)
        await runs.service.store.end("large", None, end, now=1)
        await runs.service.store.end("small", None, End(status=RunStatus.FAILED), now=2)

        assert await Sealer(runs.service).step() == 1

        assert (await runs.service.get("small")).sealed


async def test_a_run_whose_lease_was_forgotten_is_not_taken_over_before_a_whole_lease(sqlite: URL) -> None:
    clock = Clock()
    store = Store(clock)
    async with runs_on(sqlite, leases=store) as runs:
        await claimed(runs)
        store.forget_all()

        with pytest.raises(Conflict):
            await runs.service.begin("r1", producer="p2")
        clock.now += LEASE + 1

        assert (await runs.service.begin("r1", producer="p2")).epoch == 2
