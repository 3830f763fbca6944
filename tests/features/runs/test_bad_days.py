"""What goes wrong with runs, and what is then said."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.core.event import Event
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.runs.model import run_stream
from tailrace.sql import migrate
from tests.features.runs.api import ADMIN, OWNER, Site, site
from tests.support.databases import StartDatabase
from tests.support.wait import eventually


async def refused(s: Site, status: int, code: str, method: str, path: str, **more: Any) -> None:
    answer = await s.ask(method, path, **more)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_an_unknown_run_is_not_found_on_every_route(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        for path in ("/runs/x", "/runs/x/events", "/runs/x/events/stream"):
            await refused(s, 404, "RUN_NOT_FOUND", "GET", path)
        for path in ("/runs/x/complete", "/runs/x/fail", "/runs/x/cancel"):
            await refused(s, 404, "RUN_NOT_FOUND", "POST", path)
        await refused(s, 404, "RUN_NOT_FOUND", "POST", "/runs/x/claim", json={"producer": "p"})
        await refused(s, 404, "RUN_NOT_FOUND", "POST", "/runs/x/events", json={"type": "a"})
        leases = await s.good("POST", "/runs/leases", json={"runs": [{"id": "r1", "epoch": 1}]})
        assert set(leases["runs"]) == {"r1"}


async def test_only_a_finished_run_whose_stream_is_gone_has_expired(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        for run_id in ("running", "done", "fresh"):
            await s.make(run_id)
        await s.claim("fresh")
        await s.good("POST", "/runs/running/events", json=[{"type": "a"}, {"type": "b"}])
        (kept,) = [each["id"] for each in (await s.good("GET", "/runs/running/events?limit=1"))["events"]]
        await s.good("POST", "/runs/done/complete")
        for run_id in ("running", "done"):
            assert await s.log.delete(run_stream(run_id))

        for path in ("/runs/done/events", "/runs/done/events/stream"):
            await refused(s, 410, "RUN_EXPIRED", "GET", path, auth=OWNER)
        gone = await s.good("GET", f"/runs/running/events?since_id={kept}")
        assert gone["events"] == []
        assert gone["gap"]["reason"] == "deleted"
        # Ended, and its end is not in the log yet: its producer still appends.
        await s.good("POST", "/runs/fresh/complete", json={"epoch": 1, "seal": False})
        assert (await s.good("GET", "/runs/fresh/events", auth=OWNER))["events"] == []


async def test_nothing_comes_after_the_end_and_no_second_end(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        epoch = await s.claim()
        first = await s.good("POST", "/runs/r1/complete", json={"epoch": epoch, "result": 1})

        assert await s.good("POST", "/runs/r1/complete", json={"epoch": epoch, "result": 1}) == first
        await refused(s, 409, "RUN_ENDED", "POST", "/runs/r1/complete", json={"epoch": epoch, "result": 2})
        for path in ("fail", "cancel"):
            await refused(s, 409, "RUN_ENDED", "POST", f"/runs/r1/{path}")
        await refused(s, 409, "RUN_ENDED", "POST", "/runs/r1/claim", json={"producer": "p2"})
        for path in ("/runs/r1/events", f"/runs/r1/events?epoch={epoch}"):
            await refused(s, 409, "RUN_ENDED", "POST", path, json={"type": "late"})
        await refused(s, 409, "STREAM_CLOSED", "POST", "/streams/run:r1/events", json={"type": "late"})
        assert [each["type"] for each in (await s.good("GET", "/runs/r1/events"))["events"]] == ["run.completed"]


async def test_ids_that_make_no_sense_are_told(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        await s.make("other")
        await s.good("POST", "/runs/r1/events", json=[{"type": "a"}, {"type": "b"}])
        await s.good("POST", "/runs/other/events", json=[{"type": "x"} for _ in range(9)])
        low, high = [each["id"] for each in (await s.good("GET", "/runs/r1/events"))["events"]]
        foreign = (await s.good("GET", "/runs/other/events"))["events"][-1]["id"]

        backwards = await s.good("GET", f"/runs/r1/events?start_id={high}&end_id={low}")
        assert (backwards["events"], backwards["has_more"]) == ([], False)
        page = await s.good("GET", f"/runs/r1/events?since_id={foreign}")
        assert page["gap"]["reason"] == "ahead"
        assert [each["type"] for each in page["events"]] == ["a", "b"]
        lines = await s.lines("/runs/r1/events/stream", headers={"Last-Event-ID": foreign}, until="event: b")
        assert any("stream.gap" in line for line in lines)
        await refused(s, 400, "INVALID_CURSOR", "GET", "/runs/r1/events?since_id=x")


async def test_the_newest_ten_thousand_are_kept_and_the_rest_is_a_gap(tmp_path: Path) -> None:
    log = MemoryLog(kinds=Kinds([StreamKind(name="run")]))
    async with site(tmp_path, log=log) as s:
        await s.make()
        for begin in range(0, 10_201, 1_000):
            await log.append(run_stream("r1"), [Event("t", n) for n in range(begin, min(begin + 1_000, 10_201))])

        seen: list[int] = []
        gaps: list[Any] = []
        path = "/runs/r1/events?limit=1000&since_id=0"
        while True:
            page = await s.good("GET", path)
            seen += [each["data"] for each in page["events"]]
            gaps += page["gaps"]
            if not page["has_more"]:
                break
            path = f"/runs/r1/events?limit=1000&start_id={page['next_id']}"
        assert len(seen) >= 10_000
        assert seen == list(range(seen[0], 10_201))
        assert [(gap["reason"], gap["missed"]) for gap in gaps] == [("trimmed", seen[0])]
    await log.aclose()


async def test_an_event_over_a_megabyte_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        fits = {"type": "a", "data": "x" * (1_048_576 - 2)}

        await s.good("POST", "/runs/r1/events", json=fits)
        await refused(s, 413, "TOO_LARGE", "POST", "/runs/r1/events", json={"type": "a", "data": "x" * 1_048_575})


async def test_while_the_database_is_away_streams_go_on(
    tmp_path: Path, start_postgresql: StartDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await asyncio.to_thread(start_postgresql)
    await asyncio.to_thread(migrate.upgrade, server.url)
    url = server.url.render_as_string(hide_password=False)
    await asyncio.to_thread(server.stop)

    async with site(tmp_path, database_url=url, database_timeout_seconds=3) as s:
        # Away at the start.
        await refused(s, 503, "DATABASE_UNAVAILABLE", "GET", "/runs/r1")
        await refused(s, 503, "DATABASE_UNAVAILABLE", "POST", "/runs", json={"id": "r1"})
        await s.good("POST", "/streams/run:old/events", auth=ADMIN, json={"type": "a"})
        await s.good("GET", "/streams/run:old/events")

        await asyncio.to_thread(server.start)
        await s.make()
        epoch = await s.claim()
        await s.good("POST", f"/runs/r1/events?epoch={epoch}", json={"type": "a"})
        await s.good("GET", "/runs/r1/events", auth=OWNER)
        viewer = asyncio.create_task(s.lines("/runs/r1/events/stream", until="run.completed"))

        # Away in the middle of a run: who reads goes on reading, the producer keeps its lease.
        await asyncio.to_thread(server.stop)
        await s.good("POST", "/streams/run:r1/events", json={"type": "b"})
        await s.good("GET", "/streams/run:r1/events", auth=OWNER)
        monkeypatch.setattr("tailrace.features.runs.owners.FRESH_SECONDS", 0.0)
        await s.good("POST", f"/runs/r1/events?epoch={epoch}", json={"type": "c"})
        await s.good("GET", "/runs/r1/events", auth=OWNER)
        await s.lines("/runs/r1/events/stream", until="event: c")
        await refused(s, 503, "DATABASE_UNAVAILABLE", "POST", "/runs/r1/events", json={"type": "d"})
        await refused(s, 503, "DATABASE_UNAVAILABLE", "GET", "/runs/unknown/events")
        leases = await s.good("POST", "/runs/leases", json={"runs": [{"id": "r1", "epoch": epoch}]})
        assert leases["runs"]["r1"] == {"cancel": False, "fenced": False}
        await refused(s, 503, "DATABASE_UNAVAILABLE", "POST", "/runs/r1/complete", json={"epoch": epoch})

        await asyncio.to_thread(server.start)
        assert (await s.good("POST", "/runs/r1/complete", json={"epoch": epoch}))["status"] == "completed"
        assert any("event: b" in line for line in await viewer)


async def test_an_owner_that_changes_is_noticed_within_seconds(tmp_path: Path) -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession

    async with site(tmp_path, recheck_seconds=0.5) as s:
        await s.make()
        await s.good("POST", "/runs/r1/events", json={"type": "a"})
        viewer = asyncio.create_task(s.lines("/runs/r1/events/stream", until='"control":"closed"'))

        async def seen() -> bool:
            return len(s.gateway.connections) == 1

        await eventually(seen, 30)

        async def change(session: AsyncSession) -> None:
            await session.execute(text("UPDATE execution_runs SET owner = 'bob'"))

        began = time.monotonic()
        await s.feature.database.run(change)

        closed = msgspec.json.decode(next(line for line in await viewer if '"control":"closed"' in line)[6:])
        assert closed["code"] == 4502
        assert time.monotonic() - began < 60
        await refused(s, 403, "FORBIDDEN", "GET", "/runs/r1", auth=OWNER)
