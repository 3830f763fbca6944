"""A process that produces a run is killed: the run is lost, its viewers are told, and what comes from it is refused."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tailrace.features.runs.model import RunStatus
from tests.features.runs.api import OWNER, SERVICE, site
from tests.support.wait import deadline, eventually

PRODUCER = """
import asyncio, sys
from tailrace.features.runs.remote import HttpRuns

async def main():
    runs = HttpRuns(sys.argv[1], sys.argv[2])
    claim = await runs.begin("r1", producer="killed")
    print("claimed", claim.epoch, flush=True)
    while True:
        await runs.renew([("r1", claim.epoch)])
        await asyncio.sleep(0.2)

asyncio.run(main())
"""
LEASE = 4.0


async def test_a_killed_producer_loses_its_run_and_is_fenced_out(tmp_path: Path) -> None:
    async with site(tmp_path, run_lease_seconds=LEASE) as s:
        await s.make()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PRODUCER, s.served.url, SERVICE), stdout=asyncio.subprocess.PIPE, env={**os.environ}
        )
        try:
            assert process.stdout is not None
            async with deadline(60):
                assert await process.stdout.readline() == b"claimed 1\n"
            viewer = asyncio.create_task(s.lines("/runs/r1/events/stream", until='"control":"closed"'))

            async def long_alive() -> bool:
                run = await s.good("GET", "/runs/r1", auth=OWNER)
                assert run["status"] == "running"
                (alive,) = await s.gateway.leases.runs.alive(["r1"])
                loop_time = asyncio.get_running_loop().time()
                return bool(alive) and loop_time - began > 1.5 * LEASE

            began = asyncio.get_running_loop().time()
            await eventually(long_alive, 60, every=0.2)
        finally:
            process.kill()
            await process.wait()

        async def lost() -> bool:
            return bool((await s.good("GET", "/runs/r1", auth=OWNER))["status"] == RunStatus.LOST)

        await eventually(lost, 60, every=0.2)
        assert "event: run.lost" in await viewer
        late = await s.ask("POST", "/runs/r1/complete", json={"epoch": 1})
        assert (late.status_code, late.json()["code"]) == (409, "FENCED")
        late = await s.ask("POST", "/runs/r1/events?epoch=1", json={"type": "late"})
        assert late.status_code == 409
        leases = await s.good("POST", "/runs/leases", json={"runs": [{"id": "r1", "epoch": 1}]})
        assert leases["runs"]["r1"]["fenced"] is True
