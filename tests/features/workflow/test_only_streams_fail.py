"""Streams are refused while Pub/Sub goes on: viewers stay, are told, hear the old channel, and come back whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from tailrace.core.names import StreamName
from tailrace.core.rollout import Mode
from tailrace.errors import LogRefused
from tests.features.workflow.conftest import MakePublisher, Serve
from tests.features.workflow.support import OldFrontEnd, note, viewer
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

pytestmark = pytest.mark.timeout(180)

READS = ("XRANGE", "XREVRANGE", "XREAD", "XINFO")
SCRIPTS = ("EVAL", "EVALSHA")
FALLBACK_SECONDS = 1.0


class Rights:
    """A gateway's login, whose rights are taken and given back while it is in use."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = f"unix://gateway:secret@{server.socket}"

    async def give_all(self) -> None:
        await self.server.cli("ACL", "SETUSER", "gateway", "reset", "on", ">secret", "~*", "&*", "+@all")

    async def take(self, *commands: str) -> None:
        await self.server.cli("ACL", "SETUSER", "gateway", *(f"-{name.lower()}" for name in commands))


@pytest_asyncio.fixture
async def rights(start_redis: StartRedis) -> Rights:
    """All of them, on a server of its own."""
    found = Rights(await start_redis(limited=False))
    await found.give_all()
    return found


def ways(front: OldFrontEnd) -> list[tuple[str, str]]:
    """The changes that it was told."""
    return [(each["mode"], each["reason"]) for each in front.controls if each["control"] == "mode"]


def outages(front: OldFrontEnd) -> list[bool]:
    return [each["active"] for each in front.controls if each["control"] == "degraded"]


async def publish_until(publish: Callable[[int], Awaitable[Any]], told: Callable[[], bool], first: int) -> int:
    """Publish numbers, slowly, until something was told, and ten more. The next number."""
    number, more = first, 10
    async with asyncio.timeout(90):
        while more:
            await publish(number)
            number += 1
            more -= told()
            await asyncio.sleep(0.02)
    return number


@pytest.mark.parametrize(
    ("delivery", "taken"),
    [("push", SCRIPTS + READS), ("push", SCRIPTS), ("xread", SCRIPTS + READS)],
    ids=["everything", "scripts", "everything, xread"],
)
async def test_refused_streams_are_told_replaced_by_the_channel_and_come_back_without_loss_or_doubles(
    serve: Serve, make: MakePublisher, rights: Rights, delivery: str, taken: tuple[str, ...]
) -> None:
    server = rights.server
    publisher = make(server.url, mode=Mode.DUAL)
    fallen: list[StreamName] = []
    given = {"workflow_fallback_seconds": FALLBACK_SECONDS, "delivery": delivery, "fallen": fallen}

    def publish(number: int) -> Awaitable[Any]:
        # Every third looks like the one before it: equal ones stay two.
        return publisher.publish("w1", note(number - (number % 3 == 2)))

    async with serve(server, url=rights.url, **given) as running, viewer(running) as front:
        seen: list[int] = []
        reading = asyncio.create_task(collect(front, seen))
        sent = await publish_until(publish, lambda: len(seen) > 5, 0)

        await rights.take(*taken)
        sent = await publish_until(publish, lambda: ways(front) == [("pubsub", "log_unavailable")], sent)
        assert outages(front) == [True]
        await rights.give_all()
        sent = await publish_until(publish, lambda: ways(front)[1:] == [("streams", "log_available")], sent)

        await publisher.publish("w1", note(-1))
        await reading
    # Pushes went on all the time. What an xread tail could not read meanwhile comes after what the channel told.
    assert (seen if delivery == "push" else sorted(seen)) == [number - (number % 3 == 2) for number in range(sent)]
    assert outages(front) == [True, False]
    assert fallen == ["workflow:w1"]
    assert front.last_id is not None


async def collect(front: OldFrontEnd, seen: list[int]) -> None:
    """Add the numbers up to -1, which is the last."""
    while (number := (await front.numbers(1))[0]) != -1:
        seen.append(number)


async def test_who_comes_while_streams_are_refused_hears_the_channel_and_is_given_the_history_afterwards(
    serve: Serve, make: MakePublisher, rights: Rights
) -> None:
    server = rights.server
    publisher = make(server.url, mode=Mode.DUAL)

    def publish(number: int) -> Awaitable[Any]:
        return publisher.publish("w1", note(number))

    async with serve(server, url=rights.url, workflow_fallback_seconds=FALLBACK_SECONDS) as running:
        async with viewer(running) as early:
            seen: list[int] = []
            reading = asyncio.create_task(collect(early, seen))
            sent = await publish_until(publish, lambda: len(seen) > 5, 0)
            await rights.take(*SCRIPTS, *READS)
            sent = await publish_until(publish, lambda: ways(early) != [], sent)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

        async with viewer(running) as late:
            assert (late.controls[0]["mode"], late.controls[0]["resumable"]) == ("pubsub", False)
            first = sent
            late_seen: list[int] = []
            reading = asyncio.create_task(collect(late, late_seen))
            sent = await publish_until(publish, lambda: len(late_seen) > 5, sent)
            assert late_seen[:5] == list(range(first, first + 5))
            await rights.give_all()
            sent = await publish_until(publish, lambda: ways(late) == [("streams", "log_available")], sent)
            await publisher.publish("w1", note(-1))
            await reading
    assert sorted(late_seen) == list(range(sent))  # the history came after what was heard meanwhile; nothing twice


async def test_history_that_may_not_be_read_is_told_and_the_channel_heard_instead(
    serve: Serve, make: MakePublisher, rights: Rights
) -> None:
    server = rights.server
    publisher = make(server.url, mode=Mode.DUAL)
    for number in range(5):
        await publisher.publish("w1", note(number))

    async with serve(server, url=rights.url, workflow_fallback_seconds=FALLBACK_SECONDS) as running:
        await rights.take(*READS)
        async with viewer(running) as front:
            assert front.controls[0]["mode"] == "streams"
            seen: list[int] = []
            reading = asyncio.create_task(collect(front, seen))

            def publish(number: int) -> Awaitable[Any]:
                return publisher.publish("w1", note(number))

            sent = await publish_until(publish, lambda: bool(seen), 5)
            assert (outages(front), ways(front)) == ([True], [("pubsub", "log_unavailable")])
            await rights.give_all()
            sent = await publish_until(publish, lambda: ways(front)[1:] == [("streams", "log_available")], sent)
            await publisher.publish("w1", note(-1))
            await reading
    assert sorted(seen) == list(range(sent))


async def test_a_redis_that_is_full_is_replaced_by_the_channel_until_it_takes_events_again(
    serve: Serve, make: MakePublisher, start_redis: StartRedis
) -> None:
    server = await start_redis(limited=False)
    publisher = make(server.url, mode=Mode.DUAL, timeout_seconds=0.3)
    announced = 0

    async def publish(number: int) -> None:
        nonlocal announced
        try:
            await publisher.publish("w1", note(number))
        except LogRefused as exc:
            announced += exc.data["announced"]

    async with serve(server, workflow_fallback_seconds=FALLBACK_SECONDS) as running, viewer(running) as front:
        seen: list[int] = []
        reading = asyncio.create_task(collect(front, seen))
        sent = await publish_until(publish, lambda: len(seen) > 5, 0)
        await server.cli("CONFIG", "SET", "maxmemory", "1")
        refused = sent
        sent = await publish_until(publish, lambda: ways(front) == [("pubsub", "log_unavailable")], sent)
        await server.cli("CONFIG", "SET", "maxmemory", "0")
        again = sent
        sent = await publish_until(publish, lambda: ways(front)[1:] == [("streams", "log_available")], sent)
        await publisher.publish("w1", note(-1))
        await reading
    assert outages(front) == [True, False]
    # Until the viewer fell back, what only the channel had was lost to it; publishers knew: `announced`, not stored.
    assert announced == again - refused
    assert seen == sorted(set(seen))
    assert [number for number in seen if number < refused] == list(range(refused))
    heard = [number for number in seen if number >= refused]
    assert heard == list(range(heard[0], sent))
    assert heard[0] < again - 9


async def test_who_is_rolled_back_while_streams_are_refused_is_told_that_it_is_over(
    serve: Serve, make: MakePublisher, start_redis: StartRedis
) -> None:
    server = await start_redis(limited=False)
    moved = asyncio.Event()
    moved.set()
    given: dict[str, Any] = {"workflow_fallback_seconds": FALLBACK_SECONDS, "moved": moved}
    async with serve(server, **given) as running, viewer(running) as front:
        await server.cli("CONFIG", "SET", "maxmemory", "1")
        assert (await front.told("mode"))["mode"] == "pubsub"

        moved.clear()

        assert (await front.told("degraded"))["active"] is False
        await make(server.url).publish_to_channel("w1", note(1))
        assert await front.numbers(1) == [1]


async def test_who_begins_on_the_channel_is_told_nothing_of_a_log_that_it_does_not_read(
    serve: Serve, make: MakePublisher, rights: Rights
) -> None:
    async with serve(rights.server, url=rights.url, workflow_mode="pubsub") as running:
        await eventually(lambda: running.gateway.probe.healthy, 60)
        await rights.take(*SCRIPTS)
        await eventually(lambda: running.gateway.hub.degraded, 60)
        async with viewer(running) as front:
            await make(rights.server.url).publish_to_channel("w1", note(1))

            assert await front.numbers(1) == [1]
            assert outages(front) == []
