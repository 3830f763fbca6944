"""The guards on a real Redis under traffic: they roll back for what is bad, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.core.rollout import FULL, GuardLimits
from tailrace.eventlog.redis.pubsub import Channels
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.eventlog.rollout import CHANGE_STREAM, PublishReport
from tailrace.features.rollout.changing import set_percent
from tests.features.rollout.support import Stage, stage
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

pytestmark = pytest.mark.timeout(120)

COMPARED = "tailrace_rollout_compared_total"
DIFFERING = GuardLimits(mismatch=1.0)
"""What fails, or is very late, comes on one side only: on a slow machine that could be seen before the rest."""


@pytest_asyncio.fixture
async def server(start_redis: StartRedis) -> RedisServer:
    # Old channels are outside of our prefix: the minimal rights of other tests do not reach them.
    return await start_redis(limited=False)


@pytest_asyncio.fixture
async def made(server: RedisServer) -> AsyncIterator[Stage]:
    async with stage(server) as made:
        yield made


async def test_one_per_cent_of_events_that_differ_rolls_back(made: Stage) -> None:
    await made.turn_on()

    made.traffic.lose_every = 100

    assert "events differ" in await made.wait_rolled_back()
    assert made.metric("tailrace_rollout_rollbacks_total", kind="workflow") == 1
    assert made.metric("tailrace_rollout_compared_total", kind="workflow", result="missing") > 0


async def test_workflows_that_come_and_go_do_not_hide_what_differs(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.features.rollout.shadow.MAX_STREAMS", 12)
    async with stage(server) as made:
        made.traffic.begin_every = 50
        await made.turn_on()
        [shadow] = [each for each, _ in made.guard._shadows.values()]
        first = {name for name in shadow.streams if "new" in name}
        await eventually(lambda: {name for name in shadow.streams if "new" in name} - first, 60)
        assert len(shadow.streams) <= 12
        for result in ("missing", "extra"):
            assert made.metric(COMPARED, kind="workflow", result=result) == 0

        made.traffic.lose_every = 100

        assert "events differ" in await made.wait_rolled_back()
        await eventually(lambda: made.metric("tailrace_rollout_mismatch_ratio", kind="workflow") == 0, 60)


async def test_limits_that_are_set_wider_let_more_differ_and_lag_before_they_roll_back(server: RedisServer) -> None:
    async with stage(server, limits=GuardLimits(mismatch=0.4, lag_seconds=8.0)) as made:
        await made.turn_on()

        made.traffic.lose_every, made.traffic.delay_seconds = 10, 3.5
        await eventually(lambda: made.metric(COMPARED, kind="workflow", result="late") > 100, 60)
        await eventually(lambda: made.metric(COMPARED, kind="workflow", result="missing") > 20, 60)
        assert (made.health, made.view.rollout_of("workflow").percent) == ("green", FULL)

        made.traffic.lose_every = 2
        await made.wait_rolled_back()


async def test_five_per_cent_of_publishes_that_fail_roll_back(server: RedisServer) -> None:
    async with stage(server, limits=DIFFERING) as made:
        await made.turn_on()

        made.traffic.fail_every = 20

        assert "publishes failed" in await made.wait_rolled_back()
        assert made.metric("tailrace_rollout_publish_errors_total", kind="workflow") > 0


async def test_a_lag_of_two_seconds_rolls_back(server: RedisServer) -> None:
    async with stage(server, limits=DIFFERING) as made:
        await made.turn_on()

        made.traffic.delay_seconds = 2.2

        assert "s behind" in await made.wait_rolled_back()


async def test_a_clean_run_with_twins_goes_through_all_steps_by_itself_and_is_recorded(made: Stage) -> None:
    await made.turn_on(10, hold_seconds=1)

    await eventually(lambda: made.view.rollout_of("workflow").percent == FULL, 60)
    since = made.traffic.sent
    await eventually(lambda: made.traffic.sent > since + 300, 60)

    assert [(change.action, change.percent) for change in await made.store.changes()] == [
        ("set", 10),
        ("advance", 50),
        ("advance", 100),
    ]
    missing, extra = (
        made.metric("tailrace_rollout_compared_total", kind="workflow", result=name) for name in ("missing", "extra")
    )
    assert (missing, extra) == (0, 0)
    await eventually(
        lambda: made.metric("tailrace_rollout_compared_total", kind="workflow", result="matched") > 300, 60
    )

    async def told() -> bool:
        return len((await made.log.range(CHANGE_STREAM)).records) == 3

    await eventually(told, 30)


async def test_a_step_back_to_fewer_streams_makes_no_event_differ(made: Stage) -> None:
    await made.turn_on(100)

    async def settled() -> bool:
        look = await made.store.look()
        return look.rollouts["workflow"].is_settled(look.now)

    for percent in (10, 60):
        await set_percent(made.store, "workflow", percent, by="ann")
        await eventually(settled, 60)
    since = made.traffic.sent
    await eventually(lambda: made.traffic.sent > since + 800, 60)

    assert [change.action for change in await made.store.changes()] == ["set", "set", "set"]
    for result in ("missing", "extra"):
        assert made.metric("tailrace_rollout_compared_total", kind="workflow", result=result) == 0


async def test_a_rollout_without_traffic_neither_goes_on_nor_back(server: RedisServer) -> None:
    async with stage(server, traffic=False) as made:
        await set_percent(made.store, "workflow", 10, by="ann", hold_seconds=0.1, settle_seconds=0.1)
        await eventually(lambda: made.health == "unknown", 30)
        await asyncio.sleep(0)

        assert made.view.rollout_of("workflow").percent == 10


async def test_another_gateway_leads_when_the_leader_is_gone(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.features.rollout.guard.LEAD_SECONDS", 1.0)
    other = RedisRollout(server.url)
    await set_percent(other, "workflow", 10, by="ann")
    await other.lead("a gateway that was killed", 1.0)

    async with stage(server, traffic=False) as made:
        await eventually(lambda: made.guard.leads, 30)
        assert not await other.lead("a gateway that comes back", 1.0)
    await other.aclose()


async def test_guards_outlive_a_redis_that_is_killed_and_find_nothing_missing(made: Stage) -> None:
    await made.turn_on()
    await made.server.kill()
    await eventually(lambda: not made.view.up, 60)
    await made.server.start()

    await eventually(lambda: made.view.up, 60)
    before = made.metric("tailrace_rollout_compared_total", kind="workflow", result="matched")
    await eventually(
        lambda: made.metric("tailrace_rollout_compared_total", kind="workflow", result="matched") > before + 300, 60
    )

    assert made.view.rollout_of("workflow").percent == FULL


async def test_a_gateway_that_sends_its_readers_away_ends_no_guard(made: Stage) -> None:
    await made.turn_on()
    [(before, _)] = made.guard._shadows.values()

    await made.hub.drain(0.0)

    def compares_again() -> bool:
        return any(
            each is not before and each.comparison.total.matched > 100 for each, _ in made.guard._shadows.values()
        )

    await eventually(compares_again, 60)
    assert made.view.rollout_of("workflow").percent == FULL


async def test_a_stream_that_ended_is_read_no_longer_than_it_is_compared(server: RedisServer) -> None:
    stream = StreamName.parse("user:1")
    async with stage(server, traffic=False) as made:
        await set_percent(made.store, "user", FULL, by="ann", settle_seconds=0.1)
        channels = Channels(made.log.topology)

        async def read() -> bool:
            await made.log.append(stream, [Event("note", {"n": 1})])
            await channels.publish("user:1", b'{"n":1}', seconds=10)
            try:
                await eventually(lambda: made.hub.statistics().lanes == 1, 2)
            except AssertionError:
                return False
            return True

        await eventually(read, 60)
        await made.log.delete(stream)

        await eventually(lambda: made.hub.statistics().lanes == 0, 60)
        await channels.aclose()


async def test_reports_of_kinds_that_nobody_moved_are_counted_as_one(server: RedisServer) -> None:
    async with stage(server, traffic=False) as made:
        await set_percent(made.store, "workflow", 10, by="ann")
        published = "tailrace_rollout_published_total"

        async def counted() -> bool:
            await made.store.report(PublishReport(kind="workflow", published=1))
            return made.metric(published, kind="workflow") > 0

        await eventually(counted, 60)
        for number in range(3):
            await made.store.report(PublishReport(kind=f"made-up-{number}", published=1))
        await made.store.report(PublishReport(kind="workflow", published=-1))

        await eventually(lambda: made.metric(published, kind="other") == 3, 60)
        assert made.metric(published, kind="made-up-1") == 0
