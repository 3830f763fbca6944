"""The state of rollouts on every Redis, and what processes know of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tailrace.core.names import StreamName
from tailrace.core.rollout import FULL, Health, Mode, Readings, Rollout, moved
from tailrace.errors import Conflict, LogUnavailable
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.eventlog.rollout import CHANGE_STREAM, GuardNote
from tailrace.features.rollout.changing import finalize, roll_back, set_percent, tell_changes
from tailrace.features.rollout.view import RolloutView
from tests.support.commands import clean_environment, started
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import deadline, eventually

STREAM = StreamName.parse("workflow:42")
QUICK = 0.01
"""Seconds to settle, where a test is not about settling."""


@pytest_asyncio.fixture(params=["5.0", "7.0"])
async def store(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[RedisRollout]:
    server: RedisServer = request.getfixturevalue(f"redis{request.param.replace('.', '')}")
    made = RedisRollout(server.url, prefix=key_prefix)
    yield made
    await made.aclose()


async def settled(store: RedisRollout, kind: str = "workflow") -> None:
    async def done() -> bool:
        look = await store.look()
        return look.rollouts[kind].is_settled(look.now)

    await eventually(done)


async def move(store: RedisRollout, percent: int, *, settle_seconds: float | None = QUICK) -> None:
    await set_percent(store, "workflow", percent, by="ann", settle_seconds=settle_seconds)
    if settle_seconds is not None:
        await settled(store)


async def test_a_change_is_stored_with_who_and_when_and_is_an_event(store: RedisRollout) -> None:
    change = await set_percent(store, "workflow", 10, by="ann", reason="week 1", hold_seconds=60)

    assert change is not None
    look = await store.look()
    assert look.rollouts == {
        "workflow": Rollout(percent=10, since=change.at, by="ann", reason="week 1", hold_seconds=60)
    }
    assert abs(look.now - change.at) < 60
    assert await store.changes() == [change]
    log = RedisLog(store.topology, prefix=store.prefix)
    assert await tell_changes(store, log) == 1
    (record,) = (await log.range(CHANGE_STREAM)).records
    assert record.type == "rollout.changed"
    told = json.loads(record.data)
    assert (told["by"], told["kind"], told["percent"], told["was_percent"]) == ("ann", "workflow", 10, 0)
    await log.aclose()


async def test_an_event_that_was_told_twice_is_there_once(store: RedisRollout) -> None:
    log = RedisLog(store.topology, prefix=store.prefix)
    await move(store, 10)
    await tell_changes(store, log)
    await store.tell(0)
    await move(store, 50)

    assert await tell_changes(store, log) == 2

    assert len((await log.range(CHANGE_STREAM)).records) == 2
    assert await tell_changes(store, log) == 0
    await log.aclose()


async def test_setting_what_is_set_changes_nothing(store: RedisRollout) -> None:
    await move(store, 10)

    assert await set_percent(store, "workflow", 10, by="bob") is None
    assert await roll_back(store, "run", by="bob") is None
    assert len(await store.changes()) == 1


async def test_kinds_move_on_their_own(store: RedisRollout) -> None:
    await move(store, 10)
    await set_percent(store, "run", 100, by="ann")

    assert {kind: each.percent for kind, each in (await store.look()).rollouts.items()} == {"workflow": 10, "run": 100}


async def test_many_who_change_at_once_each_decide_on_what_the_one_before_left(store: RedisRollout) -> None:
    await move(store, 0 + 1)
    seen: list[int] = []

    def one_more(before: Rollout, now: float) -> Rollout:
        seen.append(before.percent)
        return Rollout(percent=before.percent + 1, since=now, by="ann", settle_seconds=QUICK)

    async def change() -> bool:
        try:
            return await store.change("set", "workflow", one_more) is not None
        except Conflict:
            return False

    done = sum(await asyncio.gather(*(change() for _ in range(8))))

    assert (await store.look()).rollouts["workflow"].percent == 1 + done
    assert [change.percent for change in await store.changes()] == list(range(1, 2 + done))


async def test_finalize_needs_all_and_a_roll_back_leads_out(store: RedisRollout) -> None:
    await move(store, 50)
    with pytest.raises(Conflict, match="50 %"):
        await finalize(store, "workflow", by="ann")
    await move(store, 100)

    assert await finalize(store, "workflow", by="ann") is not None
    assert await finalize(store, "workflow", by="ann") is None
    await settled(store)
    with pytest.raises(Conflict, match="finalized"):
        await set_percent(store, "workflow", 50, by="ann")
    assert await roll_back(store, "workflow", by="ann", reason="no") is not None

    assert [change.action for change in await store.changes()] == ["set", "set", "finalize", "rollback"]


async def test_changes_are_kept_up_to_a_number(store: RedisRollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.eventlog.redis.rollout.CHANGES_KEPT", 3)
    for percent in (1, 2, 3, 4, 5):
        await move(store, percent)

    assert [change.number for change in await store.changes()] == [3, 4, 5]


async def test_one_leads_until_its_time_is_over(store: RedisRollout) -> None:
    assert await store.lead("one", 60)
    assert not await store.lead("two", 60)
    assert await store.lead("one", 0.05)

    assert await eventually(lambda: store.lead("two", 60))


async def test_what_the_guards_said_is_kept(store: RedisRollout) -> None:
    note = GuardNote(health=Health.RED, reasons=("bad",), readings=Readings(compared=7), at=5.0, by="one")

    await store.note("workflow", note)

    assert await store.notes() == {"workflow": note}


async def test_every_key_is_in_one_slot_below_the_prefix(redis70: RedisServer, key_prefix: str) -> None:
    store = RedisRollout(redis70.url, prefix=key_prefix)
    await move(store, 10)
    await store.lead("one", 60)
    await store.note("workflow", GuardNote(health=Health.GREEN))
    await store.aclose()

    keys = await redis70.cli("KEYS", f"{key_prefix}rollout*")

    assert len(keys) == 4
    assert {key[key.index("{") : key.index("}")] for key in keys} == {"{rollout"}


async def test_a_full_server_takes_a_roll_back_and_keeps_who_leads(start_redis: StartRedis) -> None:
    server = await start_redis()
    store = RedisRollout(server.url)
    await move(store, 100)
    await store.lead("one", 60)
    await server.cli("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(LogUnavailable, match="OOM"):
        await set_percent(store, "workflow", 50, by="ann")

    change = await roll_back(store, "workflow", by="ann")

    assert change is not None
    assert (await store.look()).rollouts == {"workflow": Rollout()}
    assert await store.lead("one", 60)
    await store.aclose()


# -- what processes know ----------------------------------------------------------------------------------------------


async def test_a_view_follows_and_settles_writers_before_readers(store: RedisRollout) -> None:
    async with RolloutView(store, look_seconds=0.05).running() as view:
        assert view.mode_of(STREAM) is Mode.PUBSUB
        assert not view.reads_stream(STREAM)

        await set_percent(store, "workflow", 100, by="ann", settle_seconds=0.5)

        await eventually(lambda: view.mode_of(STREAM) is Mode.DUAL)
        await eventually(lambda: view.reads_stream(STREAM))
        await roll_back(store, "workflow", by="ann")
        await eventually(lambda: not view.reads_stream(STREAM))
        await eventually(lambda: view.mode_of(STREAM) is Mode.PUBSUB)


async def test_what_is_gone_from_redis_is_left_by_readers_before_writers(redis70: RedisServer, key_prefix: str) -> None:
    store = RedisRollout(redis70.url, prefix=key_prefix)
    passed = 0.0
    view = RolloutView(store, clock=lambda: passed)
    await set_percent(store, "workflow", FULL, by="ann", settle_seconds=60.0)
    await view.look()
    passed += 200
    assert view.reads_stream(STREAM)

    await redis70.cli("DEL", f"{key_prefix}rollout:{{rollout}}:state")

    for _ in range(2):
        await view.look()
        assert (view.reads_stream(STREAM), view.mode_of(STREAM)) == (False, Mode.DUAL)
    passed += 200
    assert view.mode_of(STREAM) is Mode.PUBSUB
    await store.aclose()


async def test_the_flag_wins_over_what_is_stored(store: RedisRollout) -> None:
    await move(store, 100)

    async with RolloutView(store, enabled=False).running() as off, RolloutView(store).running() as on:
        assert (off.mode_of(STREAM), off.reads_stream(STREAM)) == (Mode.PUBSUB, False)
        assert (on.mode_of(STREAM), on.reads_stream(STREAM)) == (Mode.DUAL, True)


async def test_the_last_known_goes_on_while_redis_is_down_and_the_news_come_when_it_is_back(
    start_redis: StartRedis,
) -> None:
    server = await start_redis()
    store = RedisRollout(server.url)
    await move(store, 100)
    async with RolloutView(store, look_seconds=0.05).running() as view:
        await server.kill()
        await eventually(lambda: not view.up, 30)
        assert view.mode_of(STREAM) is Mode.DUAL

        await server.start()
        await eventually(lambda: view.up, 30)
        await roll_back(store, "workflow", by="ann")

        await eventually(lambda: view.mode_of(STREAM) is Mode.PUBSUB, 30)
    await store.aclose()


async def test_a_process_that_starts_while_redis_is_down_does_not_wait_for_it(start_redis: StartRedis) -> None:
    server = await start_redis()
    await server.kill()
    store = RedisRollout(server.url)

    async with deadline(20), RolloutView(store).running() as view:
        assert view.mode_of(STREAM) is Mode.PUBSUB
    await store.aclose()


PROCESS = """
import asyncio, sys
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.view import RolloutView

async def main():
    store = RedisRollout(sys.argv[1], prefix=sys.argv[2])
    async with RolloutView(store).running() as view:
        print("ready", flush=True)
        last = None
        while True:
            now = str(view.rollout_of("workflow").percent)
            if now != last:
                print(last := now, flush=True)
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


async def test_four_processes_see_a_change_within_five_seconds(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    store = RedisRollout(redis70.url, prefix=key_prefix)
    program = [sys.executable, "-c", PROCESS]
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(
                started(redis70.url, key_prefix, cwd=tmp_path, env=clean_environment(tmp_path), program=program)
            )
            for _ in range(4)
        ]
        for process in processes:
            await process.until("^0$", 60)

        await set_percent(store, "workflow", 10, by="ann")

        async with deadline(5):
            await asyncio.gather(*(process.until("^10$", 60) for process in processes))
    await store.aclose()


def test_the_moment_of_a_change_is_the_servers() -> None:
    # Two machines whose clocks differ by an hour mean the same: no clock of ours is in a rollout.
    assert moved(Rollout(), 10, now=1_000.0, by="ann").since == 1_000.0
