"""The gateway is killed when runs end: how they ended is told all the same, by whom it can be."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx

from tailrace.features.runs.events import EventStore
from tailrace.features.runs.producing import Runs
from tailrace.features.runs.producing_sync import RunsSync
from tests.e2e.harness import Gateway, admin_token, gateway
from tests.support.commands import clean_environment, started
from tests.support.redis_servers import RedisServer
from tests.support.wait import deadline, eventually

WORKING = """
import sys
from tailrace.features.runs.producing_sync import RunsSync

url, token, spool = sys.argv[1:]
with RunsSync.connect(url, token=token, spool=spool) as runs:
    with runs.open(run_id="left") as run:
        for n in range(100):
            run.emit("note", n)
        print("working", flush=True)
        sys.stdin.readline()
        for n in range(100, 200):
            run.emit("note", n)
        run.result = {"rows": 200}
    print("ended", flush=True)
"""


async def ended(served: Gateway, run_id: str) -> Any:
    """A run as SQL has it, once its stream has its end."""
    headers = {"authorization": f"Bearer {admin_token()}"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:

        async def sealed() -> Any:
            run = (await client.get(f"{served.url}/runs/{run_id}")).json()
            assert run["sealed"], run
            return run

        return await eventually(sealed, 90, every=0.1)


async def told(served: Gateway, run_id: str) -> list[tuple[str, Any]]:
    """What the stream says."""
    async with EventStore(served.url, token=admin_token()) as store:
        return [(each.type, each.data) for each in await store.get_events(run_id, limit=1_000)]


async def test_a_gateway_that_is_killed_when_runs_end_is_told_when_it_is_back(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    # What was left is told within a lease of the gateway's return: a long one, for slow machines.
    async with gateway(redis70, key_prefix, tmp_path, run_lease_seconds="60") as served:
        waits = Runs.connect(served.url, token=admin_token(), end_seconds=90)
        arguments = (served.url, admin_token(), str(spool))
        program = (sys.executable, "-c", WORKING)
        env = clean_environment(tmp_path)
        async with started(*arguments, cwd=tmp_path, env=env, program=program) as leaves:
            async with waits.open(run_id="waits") as run:
                run.emit("note", 1)
                await leaves.until("working", 60)
                await served.kill()
                assert leaves.process.stdin is not None
                leaves.process.stdin.write(b"\n")
            closing = asyncio.create_task(waits.aclose(flush_seconds=30))
            await leaves.until("ended", 60)
            leaves.process.kill()
            await leaves.process.wait()

        await served.start()
        async with deadline(90):
            await closing
        following = await asyncio.to_thread(RunsSync.connect, served.url, token=admin_token(), spool=spool)
        try:
            await asyncio.to_thread(following.__enter__)
            left = await ended(served, "left")
        finally:
            await asyncio.to_thread(following.close)
        waited = await ended(served, "waits")
        said, whole = await told(served, "left"), await told(served, "waits")

    assert waited["status"] == "completed"
    assert [type_ for type_, _ in whole] == ["run.started", "note", "run.completed"]
    assert (left["status"], left["result"], left["owner_epoch"]) == ("completed", {"rows": 200}, 1)
    assert [data for type_, data in said if type_ == "note"] == list(range(200))
    assert [type_ for type_, _ in said if type_ != "note"] == ["run.started", "run.completed"]
