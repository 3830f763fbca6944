"""What a viewer of a workflow is given, in each mode and while it changes; the front end is an old one."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.core.names import StreamName
from tailrace.core.rollout import Mode
from tailrace.features.workflow.publisher import WorkflowPublisher
from tests.features.workflow.conftest import MakePublisher, OldSubscriber, Serve
from tests.features.workflow.support import PATH, WAIT, note, viewer
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import deadline, eventually
from tests.support.ws import Gate


@pytest_asyncio.fixture(params=list(Mode))
async def site(
    request: pytest.FixtureRequest, serve: Serve, make: MakePublisher, redis70: RedisServer
) -> AsyncIterator[tuple[Mode, Gate, WorkflowPublisher]]:
    """A gateway and a publisher, in each mode."""
    mode: Mode = request.param
    async with serve(redis70, workflow_mode=mode.value) as running:
        yield mode, running, make(mode=mode)


async def test_old_front_ends_and_old_subscribers_go_on_in_every_mode(
    site: tuple[Mode, Gate, WorkflowPublisher], redis70: RedisServer
) -> None:
    mode, running, publisher = site
    async with viewer(running) as front, OldSubscriber.of(redis70, publisher.channel("w1")) as old:
        opened = front.controls[0]
        assert (opened["mode"], opened["resumable"]) == (
            ("pubsub", False) if mode is Mode.PUBSUB else ("streams", True)
        )

        await publisher.publish_node_output("w1", "split", {"parts": 3})
        await publisher.publish_workflow_complete("w1", "done")

        output, complete = await front.get(), await front.get()
        assert (output["type"], output["output"]) == ("node_output", {"parts": 3})
        assert (complete["type"], complete["result"]) == ("workflow_complete", "done")
        assert (front.last_id is not None) == (mode is not Mode.PUBSUB)
        if mode is not Mode.STREAMS:
            assert [json.loads(text) for text in await old.many(2)] == [output, complete]


async def test_a_refresh_shows_the_history_where_there_is_one(site: tuple[Mode, Gate, WorkflowPublisher]) -> None:
    mode, running, publisher = site
    async with viewer(running) as front:
        for n in range(5):
            await publisher.publish("w1", note(n))
        assert await front.numbers(5) == list(range(5))

    async with viewer(running) as again:
        await publisher.publish("w1", note(5))

        assert await again.numbers(1 if mode is Mode.PUBSUB else 6) == ([5] if mode is Mode.PUBSUB else [*range(6)])


async def test_who_was_cut_off_resumes_where_there_are_ids(site: tuple[Mode, Gate, WorkflowPublisher]) -> None:
    mode, running, publisher = site
    async with viewer(running) as front:
        await publisher.publish("w1", note(0))
        await front.numbers(1)
    await publisher.publish("w1", note(1))

    async with viewer(running, last_id=front.last_id) as again:
        await publisher.publish("w1", note(2))

        assert await again.numbers(1 if mode is Mode.PUBSUB else 2) == ([2] if mode is Mode.PUBSUB else [1, 2])


async def test_a_hundred_workflows_at_once_keep_their_order(site: tuple[Mode, Gate, WorkflowPublisher]) -> None:
    _, running, publisher = site

    async def watch(number: int, ready: asyncio.Semaphore) -> list[int]:
        async with viewer(running, f"/streams/workflow:{number}/ws") as front:
            ready.release()
            return await front.numbers(10)

    ready = asyncio.Semaphore(0)
    watching = [asyncio.create_task(watch(number, ready)) for number in range(100)]
    async with deadline(90):
        for _ in range(100):
            await ready.acquire()

    await asyncio.gather(*[publisher.publish(number, note(n)) for n in range(10) for number in range(100)])

    assert await asyncio.gather(*watching) == [list(range(10))] * 100


async def test_trimmed_messages_are_a_gap_where_there_is_history(site: tuple[Mode, Gate, WorkflowPublisher]) -> None:
    mode, running, publisher = site
    for n in range(10):
        await publisher.publish("w1", note(n))
    await publisher.trim_stream("w1", max_length=3)

    async with viewer(running) as front:
        if mode is Mode.PUBSUB:
            await publisher.publish("w1", note(10))
            assert await front.numbers(1) == [10]
        else:
            assert await front.numbers(3) == [7, 8, 9]
            assert [each["missed"] for each in front.controls if each["control"] == "gap"] == [7]


async def test_the_channels_text_is_forwarded_as_it_is(serve: Serve, make: MakePublisher, redis70: RedisServer) -> None:
    publisher = make(mode=Mode.PUBSUB)
    async with serve(redis70, workflow_mode="pubsub") as running:
        headers = {"read": ["workflow:*"]}
        async with running.wire(PATH, opened=False, **headers) as wire:
            await wire.get(WAIT)
            for text in ['{ "type":  "x", "n": 1.0 }', "no json", "é"]:
                await publisher.publish_to_channel("w1", text)
                async with deadline(WAIT):
                    assert await wire.socket.recv() == text
            await publisher.publish_to_channel("w1", b"\xff")
            async with deadline(WAIT):
                assert await wire.socket.recv() == "\ufffd"


async def test_switched_off_there_is_only_the_channel(serve: Serve, make: MakePublisher, redis70: RedisServer) -> None:
    moved = asyncio.Event()
    moved.set()
    publisher = make(mode=Mode.DUAL)
    async with serve(redis70, moved=moved, redis_stream_enabled=False) as running, viewer(running) as front:
        await publisher.publish("w1", note(1))

        assert (front.controls[0]["mode"], await front.numbers(1), front.last_id) == ("pubsub", [1], None)


async def test_a_channel_with_another_name_needs_its_id_back(
    serve: Serve, make: MakePublisher, redis70: RedisServer
) -> None:
    publisher = make(mode=Mode.PUBSUB)
    async with (
        serve(redis70, workflow_mode="pubsub") as running,
        viewer(running, "/streams/workflow:a~7C1/ws") as front,
    ):
        await publisher.publish("a|1", note(1))

        assert await front.numbers(1) == [1]


@pytest.mark.parametrize("back", [False, True])
async def test_a_switch_under_load_loses_and_repeats_nothing(
    serve: Serve, make: MakePublisher, redis70: RedisServer, back: bool
) -> None:
    moved = asyncio.Event()
    if back:
        moved.set()
    publisher = make(mode=Mode.DUAL)
    sent = 0

    async def publish() -> None:
        nonlocal sent
        while True:
            # Every third message looks like the one before it.
            await publisher.publish("w1", {"type": "node_output", "n": sent - (sent % 3 == 2)})
            sent += 1
            await asyncio.sleep(0.004)

    async with serve(redis70, moved=moved) as running, viewer(running) as front:
        publishing = asyncio.create_task(publish())
        await front.numbers(20)
        if back:
            moved.clear()
        else:
            moved.set()

        seen = 20
        while front.controls[-1].get("control") != "mode":
            await front.numbers(1)
            seen += 1
        switched = front.controls[-1]
        assert (switched["mode"], switched["resumable"]) == (("pubsub", False) if back else ("streams", True))
        await front.numbers(20)
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await publisher.publish("w1", {"type": "end", "n": -1})
        rest: list[int] = []
        while not rest or rest[-1] != -1:
            rest += await front.numbers(1)

        total = seen + 20 + len(rest) - 1
        assert sent <= total <= sent + 1  # the one that was cancelled may have been published


async def test_the_numbers_are_in_order_through_a_switch_and_back(
    serve: Serve, make: MakePublisher, redis70: RedisServer
) -> None:
    moved = asyncio.Event()
    publisher = make(mode=Mode.DUAL)
    async with serve(redis70, moved=moved) as running, viewer(running) as front:
        seen: list[int] = []
        modes: list[str] = []
        for wanted in ("streams", "pubsub", "streams"):
            (moved.set if wanted == "streams" else moved.clear)()
            while [wanted] != modes[-1:]:
                await publisher.publish("w1", note(len(seen)))
                seen += await front.numbers(1)
                modes = [each["mode"] for each in front.controls if each["control"] == "mode"]
        assert modes == ["streams", "pubsub", "streams"]
        assert seen == list(range(len(seen)))

        last = front.controls[-1]
        assert StreamName.parse("workflow:w1") == last["stream"]
        assert last["cursor"]


async def test_a_stream_that_brings_nothing_holds_nobody_who_is_rolled_back(
    serve: Serve, make: MakePublisher, redis70: RedisServer
) -> None:
    moved = asyncio.Event()
    moved.set()
    publisher = make(mode=Mode.DUAL)

    async def publish() -> None:
        for n in itertools.count(1):
            await publisher.publish_to_channel("w1", note(n))
            await asyncio.sleep(0.01)

    async with serve(redis70, moved=moved) as running, viewer(running) as front:
        await publisher.publish("w1", note(0))
        assert await front.numbers(1) == [0]
        moved.clear()
        publishing = asyncio.create_task(publish())

        [first] = await front.numbers(1)

        assert [each["mode"] for each in front.controls if each["control"] == "mode"] == ["pubsub"]
        assert await front.numbers(200) == list(range(first + 1, first + 201))
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)


async def test_an_outage_is_told_and_survived_without_loss(
    serve: Serve, make: MakePublisher, start_redis: StartRedis
) -> None:
    server = await start_redis({"appendfsync": "always"})
    publisher = make(server.url, mode=Mode.STREAMS)
    async with serve(server) as running, viewer(running) as front:
        await publisher.publish("w1", note(0))
        await front.numbers(1)
        await server.kill()
        assert (await front.told("degraded"))["active"] is True

        publishing = asyncio.create_task(publisher.publish("w1", note(1)))
        await server.start()

        await publishing
        await publisher.publish("w1", note(2))
        assert await front.numbers(2) == [1, 2]
        assert not [each for each in front.controls if each["control"] in ("mode", "gap")]


async def test_a_long_outage_falls_back_to_the_channel_and_comes_back(
    serve: Serve, make: MakePublisher, start_redis: StartRedis
) -> None:
    server = await start_redis({"appendfsync": "always"})
    publisher = make(server.url, mode=Mode.STREAMS)
    fallen: list[StreamName] = []
    async with serve(server, workflow_fallback_seconds=0.5, fallen=fallen) as running, viewer(running) as front:
        await publisher.publish("w1", note(0))
        await front.numbers(1)
        await server.kill()
        away = await front.told("mode")
        assert (away["mode"], away["resumable"], away["reason"]) == ("pubsub", False, "log_unavailable")

        await server.start()
        await publisher.publish("w1", note(1))
        await publisher.publish("w1", note(2))

        assert await front.numbers(2) == [1, 2]
        while not (front.controls[-1]["control"] == "mode" and front.controls[-1]["mode"] == "streams"):
            await publisher.publish("w1", note(3))
            assert await front.numbers(1) == [3]
        assert front.controls[-1]["reason"] == "log_available"
    assert fallen == ["workflow:w1"]


async def test_a_viewer_of_the_channel_is_told_when_its_link_breaks(
    serve: Serve, make: MakePublisher, start_redis: StartRedis
) -> None:
    server = await start_redis()
    publisher = make(server.url, mode=Mode.PUBSUB)
    async with serve(server, workflow_mode="pubsub") as running, viewer(running) as front:
        await publisher.publish("w1", note(0))
        assert await front.numbers(1) == [0]

        await server.restart()

        assert (await front.told("degraded"))["active"] is True
        assert (await front.told("degraded"))["active"] is False
        await publisher.publish("w1", note(1))
        assert await front.numbers(1) == [1]


async def test_viewers_that_leave_leave_nothing_behind(serve: Serve, make: MakePublisher, redis70: RedisServer) -> None:
    publisher = make(mode=Mode.PUBSUB)
    async with serve(redis70, workflow_mode="pubsub") as running:
        async with viewer(running), viewer(running):
            assert await publisher.publish_to_channel("w1", note(1)) == 1

        async def nobody() -> bool:
            return await publisher.publish_to_channel("w1", note(1)) == 0

        await eventually(nobody, WAIT)
