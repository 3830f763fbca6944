"""What producing code is promised, by both ways to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailrace.core.event import Event
from tailrace.errors import Conflict, Fenced, LogUnavailable, OutcomeUnknown, RunEnded, RunNotFound, StreamClosed
from tailrace.features.runs.backend import LeaseState, RunBackend
from tailrace.features.runs.ending import RunEnd
from tailrace.features.runs.local import LocalRuns
from tailrace.features.runs.model import RunStatus, run_stream
from tailrace.features.runs.remote import HttpRuns
from tests.features.runs.api import SERVICE, Site, site


@asynccontextmanager
async def backend_on(sort: str, folder: Path) -> AsyncIterator[tuple[RunBackend, Site]]:
    async with site(folder) as s:
        backend: RunBackend
        if sort == "local":
            backend = LocalRuns.on(None, s.log, s.gateway.leases.runs, owner="service", data_dir=folder, timeout=30)
        else:
            backend = HttpRuns(s.served.url, SERVICE)
        try:
            yield backend, s
        finally:
            await backend.aclose()


@pytest.mark.parametrize("sort", ["local", "http"])
async def test_both_ways_keep_the_promises_of_a_producer(sort: str, tmp_path: Path) -> None:
    async with backend_on(sort, tmp_path) as (backend, s):
        made = await backend.create(kind="report", title="May", metadata={"n": 1})
        assert (made.owner, made.status, made.metadata) == ("service", RunStatus.QUEUED, {"n": 1})
        assert await backend.create(run_id="r1", owner="ada") == await backend.create(run_id="r1", owner="ada")

        claim = await backend.begin("r1", producer="p1")
        assert (claim.epoch, claim.lease_seconds, claim.run.status) == (1, 15.0, RunStatus.RUNNING)
        assert await backend.begin("r1", producer="p1") == claim
        with pytest.raises(Conflict):
            await backend.begin("r1", producer="p2")
        assert await backend.renew([("r1", 1)]) == {"r1": LeaseState()}
        await s.good("POST", "/runs/r1/cancel")
        assert (await backend.renew([("r1", 1)]))["r1"] == LeaseState(cancel=True)

        early = await backend.finish("r1", 1, RunStatus.CANCELLED, error="asked to", seal=False)
        assert (early.status, early.sealed) == (RunStatus.CANCELLED, False)
        await s.log.append(run_stream("r1"), [Event("late")], owner_epoch=1)
        assert (await backend.finish("r1", 1, RunStatus.CANCELLED, error="asked to")).sealed
        with pytest.raises(RunEnded):
            await backend.finish("r1", 1, RunStatus.COMPLETED)
        with pytest.raises(StreamClosed):
            await s.log.append(run_stream("r1"), [Event("too-late")], owner_epoch=1)
        with pytest.raises(RunNotFound):
            await backend.get("none")
        await backend.begin(made.id, producer="p")
        with pytest.raises(Fenced):
            await backend.finish(made.id, 7, RunStatus.COMPLETED)


@pytest.mark.parametrize(("status", "ends"), [("completed", "failed"), ("cancelled", "cancelled")])
async def test_a_result_that_only_the_gateway_refuses_does_not_keep_its_run_from_ending(
    status: str, ends: str, tmp_path: Path
) -> None:
    async with site(tmp_path, max_json_depth=3) as s:
        backend = HttpRuns(s.served.url, SERVICE)
        await backend.create(run_id="r1")
        claim = await backend.begin("r1", producer="p1")
        end = RunEnd(run="r1", epoch=claim.epoch, status=RunStatus(status), result=[[[[1]]]])

        early = await end.tell(backend, seal=False)
        done = await end.tell(backend)
        await backend.aclose()

    assert (early.status, done.status, done.sealed, done.result) == (RunStatus(ends), RunStatus(ends), True, None)
    assert ("its result was refused" in (done.error or "")) is (ends == "failed")


async def test_a_gateway_that_is_away_is_said_to_be() -> None:
    backend = HttpRuns("http://127.0.0.1:9", SERVICE)

    with pytest.raises((LogUnavailable, OutcomeUnknown)):
        await backend.renew([("r1", 1)])

    await backend.aclose()
