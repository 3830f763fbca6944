"""Runs in threads: the same ends, and a cancel that arrives."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailrace.features.runs.active import current_run
from tailrace.features.runs.events import SyncEventStore
from tailrace.features.runs.model import Run, RunStatus
from tailrace.features.runs.producing_sync import RunsSync
from tailrace.features.runs.steps import RunCancelled
from tests.support.producing import threads_on
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually_sync


@pytest.fixture
def runs(tmp_path: Path, redis70: RedisServer, key_prefix: str) -> Iterator[RunsSync]:
    with threads_on(tmp_path, redis70.url, key_prefix) as made:
        yield made


@pytest.fixture
def store(redis70: RedisServer, key_prefix: str) -> Iterator[SyncEventStore]:
    with SyncEventStore(redis70.url, key_prefix=key_prefix) as made:
        yield made


def stored(runs: RunsSync, run_id: str) -> Run:
    engine = runs._engines.running()
    return engine.call(engine.client.backend.get(run_id))


def cancel(runs: RunsSync, run_id: str) -> None:
    engine = runs._engines.running()
    backend: Any = engine.client.backend
    engine.call(backend.cancel(run_id))


def test_a_block_is_a_run(runs: RunsSync, store: SyncEventStore) -> None:
    with runs.open(run_id="1") as run, run.step("count") as step:
        assert current_run() is run
        for n in range(100):
            assert run.emit("note", n)
        step.token("text")
    with pytest.raises(ValueError, match="bad"), runs.open(run_id="2"):
        raise ValueError("bad")

    assert stored(runs, "1").status is RunStatus.COMPLETED
    assert stored(runs, "2").error == "ValueError: bad"
    events = store.get_events("1", limit=200)
    assert [event.data for event in events if event.type == "note"] == list(range(100))
    assert [event.type for event in events[-3:]] == ["token.delta", "step.completed", "run.completed"]


def test_a_cancel_is_seen_where_the_code_asks(runs: RunsSync) -> None:
    run = runs.create(run_id="1")
    threading.Timer(0.0, lambda: eventually_sync(lambda: cancelled_when_running(runs, "1"), 60)).start()

    def work() -> None:
        with runs.claim(run.id) as active:
            while True:
                active.check_cancelled()
                time.sleep(0.01)

    with pytest.raises(RunCancelled):
        work()

    assert stored(runs, "1").status is RunStatus.CANCELLED


def cancelled_when_running(runs: RunsSync, run_id: str) -> bool:
    if stored(runs, run_id).status is not RunStatus.RUNNING:
        return False
    cancel(runs, run_id)
    return True


def test_a_cancel_is_raised_in_code_that_never_asks(runs: RunsSync) -> None:
    run = runs.create(run_id="1")
    threading.Timer(0.0, lambda: eventually_sync(lambda: cancelled_when_running(runs, "1"), 60)).start()

    def work() -> None:
        with runs.claim(run.id, interrupt=True):
            while True:
                time.sleep(0.01)

    with pytest.raises(RunCancelled):
        work()

    assert stored(runs, "1").status is RunStatus.CANCELLED


def test_threads_have_runs_of_their_own_at_once(runs: RunsSync, store: SyncEventStore) -> None:
    def work(name: str) -> None:
        with runs.open(run_id=name) as run:
            for n in range(50):
                run.emit("note", [name, n])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for name in "abcd":
        events = store.get_events(name)
        assert [event.data for event in events if event.type == "note"] == [[name, n] for n in range(50)]
        assert events[-1].type == "run.completed"


# From 3.12 on Python warns of forking with threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_in_a_run_neither_speaks_for_it_nor_ends_it(
    runs: RunsSync, store: SyncEventStore
) -> None:
    with runs.open(run_id="1") as run:
        child = os.fork()
        if child == 0:
            said = True
            try:
                said = run.emit("note", "child")
                run.token("s", "child")
                runs.end(run)
            finally:
                os._exit(1 if said else 0)
        _, status = os.waitpid(child, 0)
        assert run.emit("note", "parent")

    assert status == 0
    assert stored(runs, "1").status is RunStatus.COMPLETED
    assert [event.data for event in store.get_events("1") if event.type == "note"] == ["parent"]
