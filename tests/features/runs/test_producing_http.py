"""Code that is a run behind a gateway: the same ends over HTTP, and what becomes of it when its process dies."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tailrace.errors import ConfigError
from tailrace.features.runs.events import EventStore
from tailrace.features.runs.producing import Runs
from tailrace.features.runs.steps import RunCancelled
from tests.features.runs.api import SERVICE, Site, site
from tests.support.wait import deadline, eventually

DYING = """
import asyncio, os, sys
from tailrace.features.runs.producing import Runs

async def main():
    async with Runs.connect(sys.argv[1], token=sys.argv[2]) as runs, runs.open(run_id="1") as run:
        n = 0
        while True:
            run.emit("note", n)
            n += 1
            await asyncio.sleep(0.05)

asyncio.run(main())
"""


async def events(there: Site, run_id: str) -> list[tuple[str, object]]:
    async with EventStore(there.served.url, token=SERVICE) as store:
        return [(event.type, event.data) for event in await store.get_events(run_id, limit=1_000)]


async def status(there: Site, run_id: str) -> str:
    answer = await there.ask("GET", f"/runs/{run_id}")
    return str(answer.json().get("status"))


async def test_a_run_ends_as_its_block_does(tmp_path: Path) -> None:
    async with site(tmp_path) as there, Runs.connect(there.served.url, token=SERVICE) as runs:
        async with runs.open(run_id="1", title="nightly", metadata={"n": 1}) as run, run.step("plan"):
            for n in range(300):
                assert run.emit("note", n)
            run.result = {"rows": 3}
        with pytest.raises(ValueError, match="bad"):
            async with runs.open(run_id="2"):
                raise ValueError("bad")

        first, second = await there.good("GET", "/runs/1"), await there.good("GET", "/runs/2")
        stored = await events(there, "1")

    assert (first["status"], first["title"], first["result"], first["sealed"]) == (
        "completed",
        "nightly",
        {"rows": 3},
        True,
    )
    assert (second["status"], second["error"]) == ("failed", "ValueError: bad")
    assert [data for type_, data in stored if type_ == "note"] == list(range(300))
    assert stored[-1][0] == "run.completed"


async def test_a_cancel_over_http_stops_the_task(tmp_path: Path) -> None:
    async with site(tmp_path) as there, Runs.connect(there.served.url, token=SERVICE) as runs:

        async def work() -> None:
            async with runs.open(run_id="1"):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await eventually(lambda: running(there), 60)
        await there.good("POST", "/runs/1/cancel")
        async with deadline(60):
            with pytest.raises(RunCancelled):
                await task

        assert await status(there, "1") == "cancelled"


async def running(there: Site) -> bool:
    return await status(there, "1") == "running"


async def test_a_run_whose_process_is_killed_is_lost_and_its_viewers_are_told(tmp_path: Path) -> None:
    async with site(tmp_path, run_lease_seconds=5) as there:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, there.served.url, SERVICE)
        try:
            await eventually(lambda: running(there), 60, every=0.1)
            watching = asyncio.create_task(there.lines("/runs/1/events/stream", auth=SERVICE, until="event: run.lost"))
            await asyncio.sleep(0)
            process.send_signal(signal.SIGKILL)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        async with deadline(60):
            lines = await watching

        assert lines[-1] == "event: run.lost"
        assert await status(there, "1") == "lost"


def test_runs_need_a_gateway() -> None:
    with pytest.raises(ConfigError):
        Runs.connect("redis://127.0.0.1:1")
