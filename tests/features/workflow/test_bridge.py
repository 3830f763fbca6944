"""Unmodified producers get streams; several bridges store each message once, and say where one may be missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tailrace.core.event import SKIPPED
from tailrace.errors import ConfigError
from tailrace.eventlog.redis.bridge import Leadership
from tailrace.eventlog.redis.topology import open_topology
from tailrace.features.workflow.bridge import Bridge
from tailrace.features.workflow.message import ENDED_SECONDS
from tailrace.features.workflow.publisher import WorkflowPublisher
from tests.features.workflow.conftest import MakePublisher
from tests.support.commands import clean_environment, started
from tests.support.proxy import Proxy, StartProxy
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

WAIT = 60.0


@asynccontextmanager
async def bridging(
    server: RedisServer, prefix: str, *, leads: bool = True, url: str = "", **options: Any
) -> AsyncIterator[Bridge]:
    bridge = Bridge(url or server.admin_url, f"{prefix}old:*", key_prefix=prefix, **options)
    task = asyncio.create_task(bridge.run())
    try:
        await eventually(lambda: bridge.leads or not leads or task.done(), WAIT)
        yield bridge
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def types(publisher: WorkflowPublisher) -> list[dict[str, Any]]:
    """What the stream has."""
    return [{**each, "id": ""} for each in (await publisher.read_history("w1", limit=1_000)).messages]


async def stored(publisher: WorkflowPublisher, count: int) -> list[dict[str, Any]]:
    """What the stream has, once it has so much."""

    async def there() -> list[dict[str, Any]]:
        found = await types(publisher)
        assert len(found) >= count, len(found)
        return found

    found: list[dict[str, Any]] = await eventually(there, WAIT, every=0.1)
    return found


async def test_messages_are_stored_in_order_and_equal_ones_are_two(
    make: MakePublisher, redis70: RedisServer, key_prefix: str
) -> None:
    old = make()
    async with bridging(redis70, key_prefix):
        for n in range(100):
            await old.publish_to_channel("w1", {"type": "node_output", "n": n // 2})

        found = await stored(old, 100)

    assert [each["n"] for each in found] == [n // 2 for n in range(100)]


async def test_what_cannot_be_an_event_is_kept_or_counted(
    make: MakePublisher, redis70: RedisServer, key_prefix: str
) -> None:
    old = make()
    async with bridging(redis70, key_prefix) as bridge:
        for text in ("no json", b"\xff", "x" * 1_100_000, '{"n":1}'):
            await old.publish_to_channel("w1", text)

        found = await stored(old, 4)

    assert found == [
        {"id": "", "text": "no json"},
        {"id": "", "base64": "/w=="},
        {"id": "", "count": 1, "reason": "too_large"},
        {"id": "", "n": 1},
    ]
    assert bridge.counts.skipped == 1


async def test_one_of_two_writes_and_the_other_takes_over_at_once_when_it_ends(
    make: MakePublisher, redis70: RedisServer, key_prefix: str
) -> None:
    old = make()
    async with bridging(redis70, key_prefix, leads=False) as second:
        async with bridging(redis70, key_prefix, leads=False) as first:
            await eventually(lambda: first.leads or second.leads, WAIT)
            await old.publish_to_channel("w1", {"n": 1})
            await stored(old, 1)
            assert first.leads is not second.leads
        await eventually(lambda: second.leads, WAIT)
        await old.publish_to_channel("w1", {"n": 2})

        async def numbers() -> list[int]:
            return [each["n"] for each in await types(old) if "n" in each]

        async def is_stored() -> bool:
            return 2 in await numbers()

        await eventually(is_stored, WAIT)
        assert await numbers() == [1, 2]


async def test_one_that_lost_the_lease_without_knowing_is_fenced_out(
    make: MakePublisher, redis70: RedisServer, key_prefix: str
) -> None:
    old = make()
    async with bridging(redis70, key_prefix) as bridge:
        await old.publish_to_channel("w1", {"n": 1})
        await stored(old, 1)
        meta = old.stream_key("w1").removesuffix("events") + "meta"
        await redis70.cli("HSET", meta, "epoch", "9000000000000000")

        await old.publish_to_channel("w1", {"n": 2})

        await eventually(lambda: bridge.counts.takeovers > 1 or not bridge.leads, WAIT)
        assert [each["n"] for each in await types(old)] == [1]


async def test_what_does_not_fit_is_left_out_and_told_at_its_place(
    make: MakePublisher, start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    old = make(server.url)
    async with bridging(server, key_prefix, max_waiting_bytes=5_000) as bridge:
        await server.cli("CONFIG", "SET", "maxmemory", "1")
        for n in range(100):
            await old.publish_to_channel("w1", {"n": n})
        await eventually(lambda: bridge.counts.heard == 100, WAIT)
        assert bridge.waiting_bytes <= 5_000
        await server.cli("CONFIG", "SET", "maxmemory", "0")

        await eventually(lambda: bridge.waiting_bytes == 0, WAIT)
        found = await stored(old, 2)

    kept = [each["n"] for each in found if "n" in each]
    assert kept == list(range(len(kept)))
    assert found[-1] == {"id": "", "count": 100 - len(kept), "reason": "full"}
    assert bridge.counts.skipped == 100 - len(kept)


async def test_more_than_one_call_may_hold_is_stored_all_the_same(
    make: MakePublisher, start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    old = make(server.url)
    async with bridging(server, key_prefix) as bridge:
        await server.cli("CONFIG", "SET", "maxmemory", "1")
        for n in range(12):
            await old.publish_to_channel("w1", {"n": n, "text": "x" * 1_000_000})
        await eventually(lambda: bridge.counts.heard == 12, WAIT)
        await server.cli("CONFIG", "SET", "maxmemory", "0")

        await eventually(lambda: bridge.counts.stored == 12, WAIT)
        found = await everything(old, "w1")

    assert [each.get("n") for each in found] == list(range(12))
    assert (bridge.counts.skipped, bridge.waiting_bytes) == (0, 0)


async def test_what_was_published_while_there_was_no_bridge_is_a_gap_in_what_goes_on(
    make: MakePublisher, redis70: RedisServer, key_prefix: str
) -> None:
    old = make()
    async with bridging(redis70, key_prefix):
        await old.publish_to_channel("w1", {"n": 1})
        await stored(old, 1)
    await old.publish_to_channel("w1", {"n": 2})
    async with bridging(redis70, key_prefix):
        await old.publish_to_channel("w1", {"n": 3})

        found = await stored(old, 3)

    assert [(each.get("n"), each.get("reason")) for each in found] == [(1, None), (None, "link"), (3, None)]


async def test_a_stream_has_a_life_when_its_workflow_has_ended(
    make: MakePublisher, redis70: RedisServer, key_prefix: str
) -> None:
    old = make()
    async with bridging(redis70, key_prefix):
        await old.publish_to_channel("w1", {"type": "node_output"})
        await stored(old, 1)
        assert await redis70.cli("TTL", old.stream_key("w1")) == -1

        await old.publish_to_channel("w1", {"type": "workflow_complete"})

        async def mortal() -> bool:
            return bool(0 < await redis70.cli("TTL", old.stream_key("w1")) <= ENDED_SECONDS)

        await eventually(mortal, WAIT)


async def test_whose_lease_is_over_stores_nothing_before_it_looks_again(
    make: MakePublisher, redis70: RedisServer, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make()
    leases = Leadership(open_topology(redis70.admin_url), f"{key_prefix}old:*", prefix=key_prefix)
    async with aclosing(leases) as other, bridging(redis70, key_prefix, lease_seconds=3.0) as bridge:
        monkeypatch.setattr("tailrace.features.workflow.bridge.RENEW_SECONDS", 600.0)

        async def taken_over() -> bool:
            return (await other.lead(600.0)).leads

        await eventually(taken_over, WAIT, every=0.1)
        await old.publish_to_channel("w1", {"n": 1})

        await eventually(lambda: bridge.counts.heard, WAIT)
        assert not bridge.leads
    assert await types(old) == []


@pytest.mark.parametrize("fault", ["full", "hangs"])
async def test_what_waited_when_the_lease_was_lost_and_what_came_while_nobody_led_is_a_gap_at_its_place(
    make: MakePublisher, start_redis: StartRedis, start_proxy: StartProxy, key_prefix: str, fault: str
) -> None:
    server = await start_redis()
    old = make(server.url)
    proxy, url = await breakable(server, start_proxy)
    async with bridging(server, key_prefix, url=url, lease_seconds=2.0) as bridge:
        await old.publish_to_channel("w1", {"n": 1})
        await stored(old, 1)
        # A full Redis refuses to store and to renew the lease; channels go on.
        await server.cli("CONFIG", "SET", "maxmemory", "1")
        for workflow in ("w1", "waits"):
            await old.publish_to_channel(workflow, {"n": 2})
        await eventually(lambda: bridge.counts.heard == 3, WAIT)
        proxy.black_hole = fault == "hangs"
        await eventually(lambda: not bridge.leads, WAIT)
        assert bridge.waiting_bytes == 0
        for workflow in ("w1", "later"):
            await old.publish_to_channel(workflow, {"n": 3})
        await server.cli("CONFIG", "SET", "maxmemory", "0")
        # What the bridge gave up asking is answered now, and nobody hears that it leads again.
        proxy.restore()
        await eventually(lambda: bridge.hears and bridge.leads, WAIT)
        for workflow in ("w1", "waits", "later", "new"):
            await old.publish_to_channel(workflow, {"n": 4})

        for workflow in ("w1", "waits", "later"):
            found = await everything(old, workflow)
            # What it gave up storing may be stored later all the same, once; before the gap.
            numbers = [each["n"] for each in found if "n" in each]
            assert numbers == sorted(set(numbers)), found
            assert (3 in numbers, numbers[-1]) == (False, 4), found
            assert [each["count"] for each in found[-2:-1] if "n" not in each] == [None], found
            assert {each["reason"] for each in found if "n" not in each} <= {"takeover", "link"}


async def test_what_one_could_not_store_for_longer_than_its_lease_is_a_gap_for_the_one_that_follows(
    make: MakePublisher, start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    old = make(server.url)
    await server.cli("ACL", "SETUSER", "one", "on", ">secret", "~*", "&*", "+@all")
    async with bridging(server, key_prefix, url=f"unix://one:secret@{server.socket}", lease_seconds=2.0) as one:
        await old.publish_to_channel("w1", {"n": 1})
        await stored(old, 1)
        async with bridging(server, key_prefix, leads=False, lease_seconds=2.0) as two:
            await eventually(lambda: two.hears, WAIT)
            # The streams do not take it any more, and the lease goes on.
            await server.cli("ACL", "SETUSER", "one", "resetkeys", f"~{key_prefix}bridge:*")
            await old.publish_to_channel("w1", {"n": 2})
            await eventually(lambda: (one.counts.heard, two.counts.heard) == (2, 1), WAIT)
            await asyncio.sleep(6.0)  # the fault itself
            assert (one.leads, one.waiting_bytes > 0) == (True, True)
            await server.cli("ACL", "SETUSER", "one", "off", "resetkeys")
            await server.cli("CLIENT", "KILL", "USER", "one")
            await eventually(lambda: two.leads, WAIT)
            await old.publish_to_channel("w1", {"n": 3})

            found = await stored(old, 3)
    assert [(each.get("n"), each.get("reason")) for each in found] == [(1, None), (None, "takeover"), (3, None)]


async def test_a_bridge_that_is_killed_is_followed_by_the_other_with_a_gap_that_is_told(
    make: MakePublisher, redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    old = make()
    env = clean_environment(tmp_path, TAILRACE_KEY_PREFIX=key_prefix)
    arguments = ("bridge", "--pattern", f"{key_prefix}old:*", "--redis", redis70.admin_url)
    sent = 0

    async def publish() -> None:
        nonlocal sent
        while True:
            await old.publish_to_channel("w1", {"n": sent})
            sent += 1
            await asyncio.sleep(0.01)

    async with started(*arguments, cwd=tmp_path, env=env) as first:
        publishing = asyncio.create_task(publish())
        await stored(old, 20)
        async with bridging(redis70, key_prefix, leads=False) as second:
            await eventually(lambda: second.counts.heard, WAIT)
            first.process.kill()
            await eventually(lambda: second.leads, WAIT)
            before = len(await types(old))
            await stored(old, before + 20)
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await old.publish_to_channel("w1", {"n": -1})

            async def ended() -> bool:
                return (await old.read_history("w1", limit=1_000)).messages[-1].get("n") == -1

            await eventually(ended, WAIT)
    found = await types(old)
    numbers = [each["n"] for each in found if "n" in each]
    assert numbers[:-1] == sorted(set(numbers[:-1]))  # in order, none twice
    told = [index for index, each in enumerate(found) if each.get("reason") == "takeover"]
    assert len(told) == 1
    at = told[0]
    holes = [index for index in range(1, len(numbers) - 1) if numbers[index] != numbers[index - 1] + 1]
    assert holes in ([], [at])
    page = await old.read_history("w1", limit=1_000)
    assert json.loads(json.dumps(page.messages[at]))["count"] is None
    assert SKIPPED == "events.skipped"


class Producer:
    """Publishes numbers on the old channels without a pause, and knows nothing of bridges."""

    def __init__(self, old: WorkflowPublisher, *workflows: str) -> None:
        self.sent = 0
        self._old = old
        self._workflows = workflows

    async def run(self) -> None:
        while True:
            for workflow in self._workflows:
                await self._old.publish_to_channel(workflow, {"n": self.sent})
            self.sent += 1
            await asyncio.sleep(0.001)

    async def wait_sent(self, more: int) -> None:
        """Wait until so many more were published."""
        wanted = self.sent + more
        await eventually(lambda: self.sent >= wanted, WAIT)


@asynccontextmanager
async def producing(old: WorkflowPublisher, *workflows: str) -> AsyncIterator[Producer]:
    producer = Producer(old, *workflows)
    task = asyncio.create_task(producer.run())
    try:
        yield producer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def everything(old: WorkflowPublisher, workflow: str) -> list[dict[str, Any]]:
    """What the stream has, once it has a last message."""
    await old.publish_to_channel(workflow, {"n": -1})

    async def ended() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more, start = True, "0-0"
        while more:
            page = await old.read_new(workflow, start, limit=1_000)
            found, more, start = [*found, *page.messages], page.has_more, page.last_id
        assert found
        assert found[-1].get("n") == -1
        return found[:-1]

    found: list[dict[str, Any]] = await eventually(ended, WAIT, every=0.1)
    return found


def assert_gaps_are_told(found: list[dict[str, Any]], reasons: set[str]) -> int:
    """Numbers are in order, none twice, and where one is missing that is said right there. How many are missing."""
    missing, last, told = 0, None, False
    for each in found:
        if "n" not in each:
            assert (each["count"], each["reason"] in reasons) == (None, True), each
            told = True
            continue
        if last is not None and each["n"] != last + 1:
            assert each["n"] > last, "out of order, or twice"
            assert told, f"nothing said between {last} and {each['n']}"
            missing += each["n"] - last - 1
        last, told = each["n"], False
    return missing


async def breakable(server: RedisServer, start_proxy: StartProxy) -> tuple[Proxy, str]:
    """A link that can be cut, and the URL that leads over it."""
    proxy = await start_proxy(str(server.socket))
    return proxy, f"unix://{':'.join(server.ADMIN)}@{proxy.path}"


async def test_a_cut_link_is_a_gap_at_its_place_in_every_stream_and_nothing_is_stored_twice(
    make: MakePublisher, redis70: RedisServer, key_prefix: str, start_proxy: StartProxy
) -> None:
    old = make()
    proxy, url = await breakable(redis70, start_proxy)
    async with bridging(redis70, key_prefix, url=url) as bridge:
        async with producing(old, "w1", "w2") as producer:
            for _ in range(3):
                await producer.wait_sent(20)
                proxy.refuse = True
                proxy.reset_all()
                await producer.wait_sent(20)  # nobody hears these
                heard = bridge.counts.heard
                proxy.restore()
                await eventually(lambda: bridge.counts.heard > heard + 20, WAIT)  # noqa: B023
        found = [await everything(old, workflow) for workflow in ("w1", "w2")]
        assert (bridge.leads, bridge.counts.takeovers) == (True, 1)

    for each in found:
        assert assert_gaps_are_told(each, {"link"}) >= 50
        assert [message["reason"] for message in each if "n" not in message] == ["link"] * 3


async def test_only_its_subscription_is_cut_and_producers_do_not_wait(
    make: MakePublisher, start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    old = make(server.url)
    async with bridging(server, key_prefix) as bridge:
        async with producing(old, "w1") as producer:
            await producer.wait_sent(20)
            for _ in range(3):
                heard = bridge.counts.heard
                await server.cli("CLIENT", "KILL", "TYPE", "pubsub")
                await eventually(lambda: bridge.counts.heard > heard + 20, WAIT)  # noqa: B023
        found = await everything(old, "w1")
        assert (bridge.leads, bridge.counts.takeovers) == (True, 1)

    assert_gaps_are_told(found, {"link"})
    assert sum("n" not in each for each in found) == 3


async def test_a_workflow_that_began_while_the_link_was_cut_begins_with_a_gap(
    make: MakePublisher, redis70: RedisServer, key_prefix: str, start_proxy: StartProxy
) -> None:
    old = make()
    proxy, url = await breakable(redis70, start_proxy)
    async with bridging(redis70, key_prefix, url=url) as bridge:
        proxy.refuse = True
        proxy.reset_all()
        await eventually(lambda: not bridge.hears, WAIT)
        await old.publish_to_channel("w1", {"n": 1})
        proxy.restore()
        await eventually(lambda: bridge.hears and bridge.leads, WAIT)

        await old.publish_to_channel("w1", {"n": 2})

        found = await stored(old, 2)
    assert [(each.get("reason"), each.get("n")) for each in found] == [("link", None), (None, 2)]


async def test_of_two_whose_links_are_cut_in_turns_each_gap_is_told_and_no_message_stored_twice(
    make: MakePublisher, redis70: RedisServer, key_prefix: str, start_proxy: StartProxy
) -> None:
    old = make()
    (near, first), (far, second) = [await breakable(redis70, start_proxy) for _ in range(2)]
    async with (
        bridging(redis70, key_prefix, leads=False, url=first, lease_seconds=2.0) as one,
        bridging(redis70, key_prefix, leads=False, url=second, lease_seconds=2.0) as two,
    ):
        await eventually(lambda: one.leads or two.leads, WAIT)
        async with producing(old, "w1") as producer:
            for _ in range(2):
                proxy, other = (near, two) if one.leads else (far, one)
                await producer.wait_sent(20)
                proxy.refuse = True
                proxy.reset_all()
                await eventually(lambda: other.leads, WAIT)  # noqa: B023
                await producer.wait_sent(20)
                proxy.restore()
                await eventually(lambda: one.hears and two.hears, WAIT)
            await producer.wait_sent(20)
        found = await everything(old, "w1")

    assert_gaps_are_told(found, {"takeover", "link"})
    assert sum(each.get("reason") == "takeover" for each in found) >= 2


@pytest.mark.parametrize(("pattern", "prefix"), [("workflow:*", ""), ("*", "t:"), ("a:*:*", "t:"), ("none", "t:")])
def test_a_pattern_that_hears_our_own_channels_or_has_no_place_for_an_id_is_refused(pattern: str, prefix: str) -> None:
    with pytest.raises(ConfigError):
        Bridge("unix:///nowhere", pattern, key_prefix=prefix)
