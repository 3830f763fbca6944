"""Celery tasks as runs: a real worker with its own processes, on a real Redis, beside a gateway."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tailrace.features.runs.events import EventStore
from tests.features.runs.api import SERVICE, Site, site
from tests.support.commands import Command, clean_environment, run_command, started
from tests.support.redis_servers import StartRedis
from tests.support.wait import eventually

JOBS = """
import os
import time

from celery import Celery

from tailrace.features.runs.active import current_run, emit
from tailrace.features.runs.producing_sync import RunsSync
from tailrace.features.runs.steps import RunCancelled
from tailrace.integrations.celery import instrument

app = Celery("jobs", broker=os.environ["BROKER"])
runs = instrument(RunsSync.connect())


@app.task
def count(most):
    run = current_run()
    with run.step("count"):
        for n in range(most):
            assert emit("note", n)


@app.task
def fail():
    raise ValueError("no rows")


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def again(self):
    if self.request.retries == 0:
        raise self.retry(exc=ValueError("not yet"))
    emit("note", "done")


@app.task(autoretry_for=(Exception,), dont_autoretry_for=(RunCancelled,), retry_kwargs={"countdown": 0})
def endless():
    emit("note", "begun")
    while True:
        time.sleep(0.02)
"""


class Worker:
    def __init__(self, there: Site, folder: Path, env: dict[str, str], process: Command) -> None:
        self.there = there
        self.folder = folder
        self.env = env
        self.process = process

    async def send(self, name: str, task_id: str, *arguments: object) -> None:
        await self._say(f"jobs.{name}.apply_async({arguments!r}, task_id={task_id!r})")

    async def revoke(self, task_id: str) -> None:
        """Celery's own way: the process that runs the task is ended."""
        await self._say(f"jobs.app.control.revoke({task_id!r}, terminate=True)")

    def kill(self) -> None:
        """kill -9, of the worker and its processes."""
        os.killpg(self.process.process.pid, signal.SIGKILL)

    async def _say(self, statement: str) -> None:
        code = f"import jobs; {statement}"
        result = await run_command("-c", code, cwd=self.folder, env=self.env, program=[sys.executable], seconds=60)
        assert result.code == 0, result.err

    async def run(self, run_id: str, *statuses: str) -> Any:
        """The run, when it has one of the statuses."""

        async def there() -> Any:
            answer = await self.there.ask("GET", f"/runs/{run_id}")
            run = answer.json()
            return run if answer.is_success and run["status"] in statuses else None

        return await eventually(there, 90, every=0.1)

    async def sealed(self, run_id: str) -> Any:
        """The run, when its stream has its end."""

        async def there() -> Any:
            run = (await self.there.ask("GET", f"/runs/{run_id}")).json()
            return run if run["sealed"] else None

        return await eventually(there, 90, every=0.1)

    async def events(self, run_id: str) -> list[tuple[str, Any]]:
        async with EventStore(self.there.served.url, token=SERVICE) as store:
            return [(event.type, event.data) for event in await store.get_events(run_id)]


@asynccontextmanager
async def worker(folder: Path, start_redis: StartRedis, **settings: Any) -> AsyncIterator[Worker]:
    redis = await start_redis(limited=False)
    (folder / "jobs.py").write_text(JOBS)
    async with site(folder / "gateway", **settings) as there:
        env = clean_environment(
            folder, TAILRACE_URL=there.served.url, TAILRACE_TOKEN=SERVICE, BROKER=f"redis+socket://{redis.socket}"
        )
        arguments = ["-m", "celery", "-A", "jobs", "worker", "--concurrency", "1", "--loglevel", "WARNING"]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        async with started(*arguments, cwd=folder, env=env, program=[sys.executable]) as process:
            yield Worker(there, folder, env, process)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_tasks_are_runs_that_end_as_they_do_and_a_cancel_reaches_them(
    tmp_path: Path, start_redis: StartRedis
) -> None:
    async with worker(tmp_path, start_redis) as celery:
        await celery.send("count", "t1", 50)
        await celery.send("fail", "t2")
        await celery.send("again", "t3")
        counted = await celery.run("t1", "completed", "failed")
        failed = await celery.run("t2", "completed", "failed")
        first, second = await celery.run("t3", "failed"), await celery.run("t3.1", "completed")
        await celery.send("endless", "t4")  # alone: there is one process, and it would keep the others waiting
        await celery.run("t4", "running")
        await celery.there.good("POST", "/runs/t4/cancel")
        await celery.run("t4", "cancelled")
        await celery.send("count", "t5", 1)
        after = await celery.run("t5", "completed", "failed", "cancelled")
        again = await celery.there.ask("GET", "/runs/t4.1")

        notes = [data for type_, data in await celery.events("t1") if type_ == "note"]
        ending = (await celery.events("t4"))[-1][0]

    assert (counted["status"], counted["kind"], counted["title"]) == ("completed", "celery", "jobs.count")
    assert notes == list(range(50))
    assert (failed["status"], failed["error"]) == ("failed", "ValueError: no rows")
    assert "not yet" in first["error"]
    assert second["status"] == "completed"
    assert ending == "run.cancelled"
    assert again.status_code == 404
    assert after["status"] == "completed"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_revoked_task_is_a_cancelled_run_and_those_of_a_killed_worker_are_lost(
    tmp_path: Path, start_redis: StartRedis
) -> None:
    async with worker(tmp_path, start_redis, run_lease_seconds=4.0) as celery:
        await celery.send("endless", "t1")
        await celery.run("t1", "running")
        await celery.revoke("t1")
        revoked = await celery.sealed("t1")

        # The worker goes on with a new process, until it is killed.
        await celery.send("endless", "t2")
        await celery.run("t2", "running")
        celery.kill()
        lost = await celery.sealed("t2")

        endings = [(await celery.events(run_id))[-1][0] for run_id in ("t1", "t2")]

    assert revoked["status"] == "cancelled"
    assert lost["status"] == "lost"
    assert endings == ["run.cancelled", "run.lost"]
