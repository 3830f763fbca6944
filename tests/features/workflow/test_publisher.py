"""Every public step of the publisher, on a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from tailrace.core.event import GapReason
from tailrace.core.rollout import Mode
from tailrace.errors import ConfigError, InvalidCursor, LogUnavailable, OutcomeUnknown, TooLarge
from tailrace.features.workflow.message import stream_of
from tailrace.features.workflow.publisher import ENDED_SECONDS, WorkflowPublisher
from tailrace.features.workflow.sync import WorkflowPublisherSync
from tests.features.workflow.conftest import MakePublisher, OldSubscriber
from tests.support.proxy import StartProxy
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually


@pytest.fixture
def publisher(make: MakePublisher) -> WorkflowPublisher:
    return make()


@pytest.fixture
def dual(make: MakePublisher) -> WorkflowPublisher:
    return make(mode=Mode.DUAL)


@pytest_asyncio.fixture
async def old(redis70: RedisServer, dual: WorkflowPublisher) -> AsyncIterator[OldSubscriber]:
    async with OldSubscriber.of(redis70, dual.channel("w1")) as subscriber:
        yield subscriber


async def test_the_stream_key_is_the_one_that_redis_has(
    publisher: WorkflowPublisher, redis70: RedisServer, key_prefix: str
) -> None:
    await publisher.publish_to_stream("w1", {"type": "x"})

    assert publisher.stream_key("w1") == f"{key_prefix}workflow:{{w1}}:events"
    assert await redis70.cli("XLEN", publisher.stream_key("w1")) == 1


async def test_an_id_that_is_no_name_has_a_stream_of_its_own(publisher: WorkflowPublisher) -> None:
    await publisher.publish_node_output("a|1", "n", 1)
    await publisher.publish_node_output("a:1", "n", 2)

    assert [each["output"] for each in (await publisher.read_history("a|1")).messages] == [1]


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_node_output_is_told_where_the_mode_says(make: MakePublisher, redis70: RedisServer, mode: Mode) -> None:
    publisher = make(mode=mode)
    async with OldSubscriber.of(redis70, publisher.channel("w1")) as old:
        published = await publisher.publish_node_output("w1", "split", {"parts": 3}, step=2)

        message = {"type": "node_output", "workflow_id": "w1", "node_id": "split", "output": {"parts": 3}, "step": 2}
        assert published.mode is mode
        assert published.receivers == (None if mode is Mode.STREAMS else 1)
        if mode is not Mode.STREAMS:
            assert await old.get() == json.dumps(message).encode()
        history = await publisher.read_history("w1")
        expected = [] if mode is Mode.PUBSUB else [{"id": str(published.id), **message}]
        assert history.messages == expected


async def test_the_end_of_a_workflow_gives_its_stream_a_life(dual: WorkflowPublisher, redis70: RedisServer) -> None:
    await dual.publish_node_output("w1", "a")
    assert await redis70.cli("TTL", dual.stream_key("w1")) == -1

    await dual.publish_workflow_complete("w1", {"ok": True})

    assert 0 < await redis70.cli("TTL", dual.stream_key("w1")) <= ENDED_SECONDS
    assert (await dual.read_history("w1")).messages[-1] | {"id": ""} == {
        "id": "",
        "type": "workflow_complete",
        "workflow_id": "w1",
        "result": {"ok": True},
    }


async def test_a_workflow_that_is_started_again_gives_its_stream_its_life_again(
    dual: WorkflowPublisher, redis70: RedisServer
) -> None:
    await dual.publish_workflow_complete("w1")
    key = dual.stream_key("w1")
    ended = int(await redis70.cli("PTTL", key))
    await eventually(partial(_below, redis70, key, ended))

    await dual.publish_node_output("w1", "a")

    assert await redis70.cli("PTTL", key) > ended


async def _below(server: RedisServer, key: str, life: int) -> bool:
    return int(await server.cli("PTTL", key)) < life


@pytest.mark.parametrize("later", ["publish_to_stream", "retry"])
async def test_an_end_that_is_brought_in_later_gives_its_stream_a_life_too(
    make: MakePublisher, redis70: RedisServer, start_proxy: StartProxy, later: str
) -> None:
    proxy = await start_proxy(str(redis70.socket))
    publisher = make(redis70.url.replace(str(redis70.socket), str(proxy.path)), timeout_seconds=3.0)
    await publisher.publish_node_output("w1", "a")
    if later == "retry":
        proxy.drop_replies = True
        with pytest.raises(OutcomeUnknown) as caught:
            await publisher.publish_workflow_complete("w1")
        proxy.restore()
        proxy.reset_all()

        async def settled() -> bool:
            with suppress(LogUnavailable, OutcomeUnknown):
                return bool(await publisher.retry(caught.value.receipt))
            return False

        await eventually(settled, 60, every=0.1)
    else:
        await publisher.publish_to_stream("w1", {"type": "workflow_complete"})

    assert 0 < await redis70.cli("TTL", publisher.stream_key("w1")) <= ENDED_SECONDS
    assert [each["type"] for each in (await publisher.read_history("w1")).messages][1:] == ["workflow_complete"]


async def test_an_error_is_told_and_the_workflow_may_go_on(dual: WorkflowPublisher, old: OldSubscriber) -> None:
    await dual.publish_workflow_error("w1", ValueError("no model"), node_id="ask")
    await dual.publish_node_output("w1", "ask", "again")

    first, second = map(json.loads, await old.many(2))
    assert (first["type"], first["error"], first["node_id"]) == ("workflow_error", "no model", "ask")
    assert second["output"] == "again"
    assert [each["type"] for each in (await dual.read_history("w1")).messages] == ["workflow_error", "node_output"]


@pytest.mark.parametrize(
    "text",
    [
        b'{ "type": "node_output",  "n": 1.50, "s": "\\u00e9\\n", "n": 2 }',
        b'{"type":"node_output","text":"plain"}',
        '{"type": "node_output", "ü": [1e2, null]}'.encode(),
    ],
)
async def test_the_old_channel_gets_the_text_as_it_is_and_the_stream_the_same_object(
    dual: WorkflowPublisher, old: OldSubscriber, redis70: RedisServer, text: bytes
) -> None:
    published = await dual.publish("w1", text)

    assert await old.get() == text
    assert (await dual.read_history("w1")).messages == [{"id": str(published.id), **json.loads(text)}]


async def test_what_is_no_json_is_kept_as_its_text(dual: WorkflowPublisher, old: OldSubscriber) -> None:
    await dual.publish("w1", "half of {")
    await dual.publish("w1", b"\xff\x00")
    await dual.publish("w1", '{"type": "error"}')

    assert await old.many(3) == [b"half of {", b"\xff\x00", b'{"type": "error"}']
    found = [{**each, "id": ""} for each in (await dual.read_history("w1")).messages]
    assert found == [{"id": "", "text": "half of {"}, {"id": "", "base64": "/wA="}, {"id": "", "type": "error"}]


async def test_publishing_to_one_side_leaves_the_other_alone(dual: WorkflowPublisher, old: OldSubscriber) -> None:
    await dual.publish_to_stream("w1", {"n": 1})
    await dual.publish_to_channel("w1", {"n": 2})

    assert json.loads(await old.get()) == {"n": 2}
    assert [each["n"] for each in (await dual.read_history("w1")).messages] == [1]


async def test_order_is_that_of_the_calls_on_both_sides(dual: WorkflowPublisher, old: OldSubscriber) -> None:
    published = await asyncio.gather(*[dual.publish("w1", {"n": n}) for n in range(200)])

    assert [json.loads(text)["n"] for text in await old.many(200)] == list(range(200))
    ids = [each.id for each in published if each.id is not None]
    assert ids == sorted(ids)
    assert [each["n"] for each in (await dual.read_history("w1", limit=200)).messages] == list(range(200))


async def test_trimming_keeps_the_newest_and_sets_a_life(publisher: WorkflowPublisher, redis70: RedisServer) -> None:
    first = await publisher.publish("w1", {"n": 0})
    for n in range(1, 10):
        await publisher.publish("w1", {"n": n})

    assert await publisher.trim_stream("w1", max_length=4, expire_seconds=600) == 6
    assert 0 < await redis70.cli("TTL", publisher.stream_key("w1")) <= 600
    new = await publisher.read_new("w1", str(first.id))
    assert [each["n"] for each in new.messages] == [6, 7, 8, 9]
    assert [(gap.reason, gap.missed) for gap in new.gaps] == [(GapReason.TRIMMED, 5)]

    assert await publisher.trim_stream("w1", expire_seconds=None) == 0
    assert await redis70.cli("TTL", publisher.stream_key("w1")) == -1


async def test_history_is_read_by_inclusive_ids_in_pages(publisher: WorkflowPublisher) -> None:
    ids = [str((await publisher.publish("w1", {"n": n})).id) for n in range(10)]

    page = await publisher.read_history("w1", start_id=ids[2], end_id=ids[8], limit=5)

    assert ([each["n"] for each in page.messages], page.has_more, page.last_id) == ([2, 3, 4, 5, 6], True, ids[6])
    with pytest.raises(InvalidCursor):
        await publisher.read_history("w1", start_id="yesterday")


async def test_reading_new_messages_waits_for_the_next_one(publisher: WorkflowPublisher) -> None:
    first = await publisher.publish("w1", {"n": 1})
    waiting = asyncio.create_task(publisher.read_new("w1", str(first.id), wait_seconds=60))

    await asyncio.sleep(0)
    second = await publisher.publish("w1", {"n": 2})

    new = await waiting
    assert (new.messages, new.last_id) == ([{"id": str(second.id), "n": 2}], str(second.id))
    assert (await publisher.read_new("w1", new.last_id, wait_seconds=0.05)).last_id == new.last_id


@pytest.mark.parametrize("mode", list(Mode))
async def test_switched_off_wins_over_every_mode(make: MakePublisher, redis70: RedisServer, mode: Mode) -> None:
    publisher = make(mode=mode, streams_enabled=False)

    published = await publisher.publish("w1", {"n": 1})

    assert (published.mode, published.id, published.receivers) == (Mode.PUBSUB, None, 0)
    assert await redis70.cli("EXISTS", publisher.stream_key("w1")) == 0


async def test_an_event_over_the_limit_is_refused_and_told_to_nobody(
    dual: WorkflowPublisher, old: OldSubscriber
) -> None:
    with pytest.raises(TooLarge):
        await dual.publish("w1", {"text": "x" * 1_100_000})
    await dual.publish("w1", {"n": 1})

    assert json.loads(await old.get()) == {"n": 1}


async def test_a_publish_that_the_old_channel_refuses_is_stored_and_counted(
    start_redis: StartRedis, make: MakePublisher
) -> None:
    server = await start_redis(limited=False)
    dual = make(server.url, mode=Mode.DUAL)
    await server.cli("ACL", "SETUSER", "default", "resetchannels", f"&{dual.channel('x').split('old')[0]}workflow*")

    published = await dual.publish("w1", {"n": 1})

    assert (published.id is not None, published.receivers) == (True, None)
    assert (dual.counts.appended, dual.counts.announce_errors) == (1, 1)
    assert [each["n"] for each in (await dual.read_history("w1")).messages] == [1]


async def test_an_append_that_is_refused_raises_and_says_that_the_old_channel_had_it(
    start_redis: StartRedis, make: MakePublisher
) -> None:
    server = await start_redis()
    dual = make(server.url, mode=Mode.DUAL, timeout_seconds=3.0)
    await dual.publish("w1", {"n": 1})
    async with OldSubscriber.of(server, dual.channel("w1")) as old:
        await server.cli("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(LogUnavailable) as caught:
            await dual.publish("w1", {"n": 2})
        await server.cli("CONFIG", "SET", "maxmemory", "0")

        assert caught.value.data["announced"] is True
        assert json.loads(await old.get()) == {"n": 2}
    await dual.publish_to_stream("w1", {"n": 2})
    assert [each["n"] for each in (await dual.read_history("w1")).messages] == [1, 2]


@pytest.mark.parametrize("mode", list(Mode))
async def test_without_redis_publishing_fails_in_time(make: MakePublisher, start_redis: StartRedis, mode: Mode) -> None:
    server = await start_redis()
    publisher = make(server.url, mode=mode, timeout_seconds=1.0)
    await publisher.publish("w1", {"n": 1})
    await server.kill()

    with pytest.raises((LogUnavailable, OutcomeUnknown)):
        await publisher.publish("w1", {"n": 2})


async def test_a_server_with_streams_says_so(make: MakePublisher, every_redis: RedisServer) -> None:
    publisher = make(every_redis.url)

    features = await publisher.features()

    version = (await every_redis.info("server"))["redis_version"]
    assert (features.version, features.has_streams) == (version, True)
    assert features.exclusive_ranges == (not version.startswith("5."))
    assert await publisher.mode("w1") is Mode.STREAMS


@pytest.mark.parametrize("template", ["workflow", "workflow:{id}:{id}", "w*:{id}", "{id}{x}"])
def test_a_channel_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(ConfigError):
        WorkflowPublisher("unix:///nowhere", channel=template)


async def test_the_sync_publisher_does_the_same(redis70: RedisServer, key_prefix: str, channel: str) -> None:
    def work() -> Any:
        with WorkflowPublisherSync(redis70.url, mode=Mode.DUAL, key_prefix=key_prefix, channel=channel) as publisher:
            first = publisher.publish_node_output("w1", "a", 1)
            publisher.publish_workflow_error("w1", "bad")
            publisher.publish_workflow_complete("w1", 2)
            publisher.publish("w1", '{"type":"note"}')
            stored = publisher.publish_to_stream("w1", {"n": 1})
            assert publisher.publish_to_channel("w1", {"n": 2}) == 0
            assert publisher.read_new("w1", str(stored)).messages == []
            assert publisher.trim_stream("w1", max_length=100) == 0
            assert publisher.channel("w1") == channel.format(id="w1")
            assert publisher.stream_key("w1") == f"{key_prefix}workflow:{{w1}}:events"
            assert (publisher.mode("w1"), publisher.features().has_streams) == (Mode.DUAL, True)
            assert publisher.counts.appended == 5
            return first, publisher.read_history("w1")

    first, history = await asyncio.to_thread(work)

    assert first.receivers == 0
    kinds = [each.get("type") for each in history.messages]
    assert kinds == ["node_output", "workflow_error", "workflow_complete", "note", None]


async def test_who_stops_waiting_for_new_messages_is_a_reader_no_more(publisher: WorkflowPublisher) -> None:
    hub = await publisher._direct.hub()
    waiting = asyncio.create_task(publisher.read_new("w1", wait_seconds=600))
    await eventually(lambda: hub.readers(stream_of("w1")) == 1)

    waiting.cancel()
    await asyncio.wait([waiting])

    assert hub.readers(stream_of("w1")) == 0
