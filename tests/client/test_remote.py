"""The client over HTTP, against the real gateway."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tailrace.client.backend import Link
from tailrace.client.client import Tailrace
from tailrace.client.subscription import Subscription
from tailrace.core.event import Ended, Event, Gap, GapReason, Item, Record
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.errors import (
    AlreadyClosed,
    Forbidden,
    IdempotencyConflict,
    InvalidCursor,
    InvalidStream,
    LogUnavailable,
    Malformed,
    NotFound,
    OutcomeUnknown,
    StreamClosed,
    TooLarge,
    Unauthorized,
)
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tests.support.faulty import FaultyProxy, faulty_proxy
from tests.support.gateways import gateway_on, mint
from tests.support.wait import deadline


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    made = MemoryLog(kinds=Kinds([StreamKind(name="short", max_length=100)]))
    yield made
    await made.aclose()


@pytest.fixture
async def proxy(log: Log) -> AsyncIterator[FaultyProxy]:
    async with gateway_on(log) as (server, _), faulty_proxy(server.port) as made:
        yield made


@pytest.fixture
async def client(proxy: FaultyProxy) -> AsyncIterator[Tailrace]:
    async with Tailrace(proxy.url, token=mint(admin=True)) as made:
        yield made


async def take(subscription: Subscription, count: int, seconds: float = 10.0) -> list[Item]:
    async with deadline(seconds):
        return [await anext(subscription) for _ in range(count)]


async def rest(subscription: Subscription, seconds: float = 10.0) -> list[Item]:
    async with deadline(seconds):
        return [item async for item in subscription]


def numbers(items: Sequence[Item]) -> list[int]:
    """What the records say, for streams of `{"n": …}`."""
    return [int(item.data[5:-1]) for item in items if isinstance(item, Record)]


def counted(first: int, last: int) -> list[Event]:
    return [Event("note", {"n": n}) for n in range(first, last + 1)]


# -- publishing ------------------------------------------------------------------------------------------------


async def test_a_published_event_comes_to_a_subscriber_once_and_in_order(client: Tailrace) -> None:
    await client.publish("run:1", "note", {"n": 1})
    subscription = client.subscribe("run:1")

    first = await take(subscription, 1)
    waiting = asyncio.ensure_future(take(subscription, 1))
    stored = await client.publish("run:1", "note", {"n": 2})
    second = await waiting

    assert numbers(first + second) == [1, 2]
    assert isinstance(second[0], Record)
    assert second[0].id == stored.id
    assert subscription.cursor == str(stored.id)


async def test_an_event_whose_answer_was_lost_is_sent_again_and_stored_once(
    client: Tailrace, proxy: FaultyProxy
) -> None:
    proxy.lose_replies = 2

    stored = await client.publish("run:1", "note", {"n": 1})

    assert stored.duplicate
    assert numbers(await client.history("run:1").records()) == [1]


async def test_a_publish_that_never_reached_anybody_was_not_stored(client: Tailrace, proxy: FaultyProxy) -> None:
    unreachable = Tailrace("http://127.0.0.1:1", token="t")

    with pytest.raises(LogUnavailable):
        await unreachable.publish("run:1", "note", timeout_seconds=0.5)

    await unreachable.aclose()


async def test_a_publish_that_was_perhaps_stored_says_so_and_is_settled_by_its_receipt(
    client: Tailrace, proxy: FaultyProxy
) -> None:
    proxy.silent = True
    with pytest.raises(OutcomeUnknown) as caught:
        await client.publish_many("run:1", counted(1, 3), timeout_seconds=0.5)

    proxy.silent = False
    stored = await client.retry(caught.value.receipt)

    assert [each.id.seq for each in stored] == [1, 2, 3]
    assert numbers(await client.history("run:1").records()) == [1, 2, 3]


async def test_many_events_keep_their_order_over_batches(client: Tailrace) -> None:
    stored = await client.publish_many("run:1", counted(1, 600))

    assert [each.id.seq for each in stored] == list(range(1, 601))
    assert numbers(await client.history("run:1").records()) == list(range(1, 601))


async def test_refusals_are_the_errors_they_are(client: Tailrace, proxy: FaultyProxy) -> None:
    await client.publish("run:1", "note", {"n": 1}, uid="once")
    with pytest.raises(IdempotencyConflict):
        await client.publish("run:1", "note", {"n": 2}, uid="once")
    await client.close_stream("run:1")
    with pytest.raises(StreamClosed):
        await client.publish("run:1", "note")
    with pytest.raises(InvalidStream):
        await client.publish("run", "note")
    with pytest.raises(Malformed):
        await client.publish("run:1", "note", float("nan"))
    with pytest.raises(TooLarge) as caught:
        await client.publish("run:2", "note", "x" * 1_100_000)
    assert caught.value.data["limit"] == 1_048_576
    with pytest.raises(NotFound):
        await client.info("run:none")
    async with Tailrace(proxy.url, token=mint(read=[], write=[])) as poor, Tailrace(proxy.url, token="no") as nobody:
        with pytest.raises(Forbidden):
            await poor.publish("run:1", "note")
        with pytest.raises(Unauthorized):
            await nobody.info("run:1")


async def test_a_line_break_in_a_token_never_becomes_a_header(proxy: FaultyProxy) -> None:
    async with Tailrace(proxy.url, token="a\r\nX-Evil: 1") as client:
        with pytest.raises(Malformed):
            await client.info("run:1")


async def test_streams_are_described_closed_and_deleted(client: Tailrace) -> None:
    await client.publish_many("run:1", counted(1, 3))

    info = await client.info("run:1")
    await client.close_stream("run:1")

    assert (info.length, info.state.value, info.last_id and info.last_id.seq) == (3, "open", 3)
    assert (await client.info("run:1")).state.value == "closed"
    assert await client.delete("run:1")
    assert not await client.delete("run:none")


async def test_a_closed_client_says_so(proxy: FaultyProxy) -> None:
    client = Tailrace(proxy.url, token=mint())
    await client.aclose()
    await client.aclose()

    with pytest.raises(AlreadyClosed):
        await client.publish("run:1", "note")


# -- subscribing -----------------------------------------------------------------------------------------------


async def test_a_subscription_ends_with_its_stream(client: Tailrace) -> None:
    await client.publish_many("run:1", counted(1, 2))
    await client.close_stream("run:1")

    subscription = client.subscribe("run:1")
    items = await rest(subscription)

    assert numbers(items) == [1, 2]
    assert isinstance(items[-1], Ended)
    assert await rest(subscription) == []
    assert [type(item) for item in await rest(client.subscribe("run:1", since=subscription.cursor))] == [Ended]


async def test_a_reader_that_is_cut_off_again_and_again_gets_everything_once(
    client: Tailrace, proxy: FaultyProxy
) -> None:
    proxy.cut_after = 3_000
    links: list[bool] = []
    subscription = client.subscribe("run:1", on_link=lambda link: links.append(link.up))
    reading = asyncio.create_task(rest(subscription, 50))
    async with Tailrace(f"http://127.0.0.1:{proxy.target_port}", token=mint()) as other:
        for n in range(1, 41):
            await other.publish("run:1", "note", {"n": n})
        await other.close_stream("run:1")

    items = await reading

    assert numbers(items) == list(range(1, 41))
    assert not any(isinstance(item, Gap) for item in items)
    assert links.count(False) >= 2


async def test_several_streams_go_on_from_one_cursor(client: Tailrace) -> None:
    await client.publish_many("run:1", counted(1, 3))
    await client.publish_many("run:2", counted(11, 13))
    first = client.subscribe("run:1", "run:2")
    begun = await take(first, 4)
    cursor = first.cursor
    await first.aclose()
    await client.close_stream("run:1")
    await client.close_stream("run:2")

    items = begun + await rest(client.subscribe("run:1", "run:2", since=cursor))

    assert sorted(numbers(items)) == [1, 2, 3, 11, 12, 13]
    for stream in ("run:1", "run:2"):
        mine = [item for item in items if isinstance(item, Record) and item.stream == stream]
        assert numbers(mine) == sorted(numbers(mine))


async def test_where_to_begin_can_be_said_per_stream(client: Tailrace) -> None:
    await client.publish_many("run:1", counted(1, 2))
    stored = await client.publish_many("run:2", counted(11, 13))
    subscription = client.subscribe("run:1", "run:2", since={"run:1": "$", "run:2": str(stored[1].id)})

    assert numbers(await take(subscription, 1)) == [13]
    await client.publish("run:1", "note", {"n": 3})
    assert numbers(await take(subscription, 1)) == [3]
    with pytest.raises(InvalidCursor):
        client.subscribe("run:1", "run:2", since=stored[0].id)
    with pytest.raises(InvalidCursor):
        client.subscribe("run:1", since="nowhere")


async def test_a_time_is_a_place_to_begin(client: Tailrace) -> None:
    await client.publish_many("run:1", counted(1, 2))

    since = datetime.now(UTC) - timedelta(minutes=1)
    assert numbers(await take(client.subscribe("run:1", since=since), 2)) == [1, 2]
    assert numbers(await client.history("run:1", start=since).records()) == [1, 2]


async def test_what_was_trimmed_is_a_gap(client: Tailrace) -> None:
    await client.publish_many("short:1", counted(1, 500))

    items = await take(client.subscribe("short:1", since="0"), 2)

    assert isinstance(items[0], Gap)
    assert items[0].reason is GapReason.TRIMMED
    assert isinstance(items[1], Record)
    assert items[0].missed == items[1].id.seq - 1


_SECOND = re.compile(rb'id: [^\n]*\nevent: [^\n]*\ndata: [^\n]*"data":\{"n":2\}[^\n]*\n\n')


def hide_second(data: bytes) -> bytes:
    """Make a comment of the same length of the record that says 2."""
    return _SECOND.sub(lambda match: b":" + b"x" * (len(match[0]) - 2) + b"\n", data)


async def test_a_record_that_got_lost_on_the_way_is_fetched_again(client: Tailrace, proxy: FaultyProxy) -> None:
    def made_anew(link: Link) -> None:
        if not link.up:
            proxy.change = None

    subscription = client.subscribe("run:1", on_link=made_anew)
    await client.publish("run:1", "note", {"n": 1})
    assert numbers(await take(subscription, 1)) == [1]

    proxy.change = hide_second
    await client.publish_many("run:1", counted(2, 3))

    assert numbers(await take(subscription, 2)) == [2, 3]


async def test_a_record_that_does_not_come_at_all_is_told_as_a_gap(client: Tailrace, proxy: FaultyProxy) -> None:
    proxy.change = hide_second
    stored = await client.publish_many("run:1", counted(1, 4))

    items = await take(client.subscribe("run:1"), 4)

    assert numbers(items) == [1, 3, 4]
    gap = items[1]
    assert isinstance(gap, Gap)
    assert (gap.after, gap.before, gap.missed) == (stored[0].id, stored[2].id, 1)


async def test_a_silent_connection_is_given_up_and_made_anew(client: Tailrace, proxy: FaultyProxy) -> None:
    await client.publish("run:1", "note", {"n": 1})
    subscription = client.subscribe("run:1", heartbeat_seconds=0.5)
    await take(subscription, 1)
    proxy.silent = True
    async with Tailrace(f"http://127.0.0.1:{proxy.target_port}", token=mint()) as other:
        await other.publish("run:1", "note", {"n": 2})
    accepted = proxy.accepted
    waiting = asyncio.ensure_future(take(subscription, 1, 20))
    async with deadline(10):
        while proxy.accepted == accepted:
            await asyncio.sleep(0.02)
    proxy.silent = False
    proxy.cut()

    assert numbers(await waiting) == [2]


async def test_a_cancelled_wait_loses_nothing(client: Tailrace) -> None:
    subscription = client.subscribe("run:1")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(subscription)
    await client.publish_many("run:1", counted(1, 2))

    assert numbers(await take(subscription, 2)) == [1, 2]


async def test_a_reader_may_give_up(client: Tailrace, proxy: FaultyProxy) -> None:
    proxy.refusing = True

    begun = time.monotonic()
    with pytest.raises(LogUnavailable):
        await take(client.subscribe("run:1", give_up_seconds=0.5), 1)

    assert 0.4 < time.monotonic() - begun < 5


async def test_a_refused_reader_is_told_why(proxy: FaultyProxy) -> None:
    async with Tailrace(proxy.url, token=mint(read=[], write=[])) as poor, Tailrace(proxy.url, token="no") as nobody:
        with pytest.raises(Forbidden):
            await take(poor.subscribe("run:1"), 1)
        with pytest.raises(Unauthorized):
            await take(nobody.subscribe("run:1"), 1)


async def test_a_token_function_is_asked_again_when_the_token_runs_out(proxy: FaultyProxy) -> None:
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        return mint(ttl=-60 if asked == 1 else 600)

    async with Tailrace(proxy.url, token=token) as client:
        await client.publish("run:1", "note", {"n": 1})
        assert numbers(await take(client.subscribe("run:1"), 1)) == [1]

    assert asked == 2


# -- history ---------------------------------------------------------------------------------------------------


async def test_history_is_read_by_pages_both_ways(client: Tailrace) -> None:
    stored = await client.publish_many("run:1", counted(1, 1_500))

    assert numbers(await client.history("run:1").records()) == list(range(1, 1_501))
    newest = await client.history("run:1", reverse=True, limit=1_200).records()
    assert numbers(list(newest)) == list(range(1_500, 300, -1))
    between = await client.history("run:1", start=stored[9].id, end=str(stored[11].id)).records()
    assert numbers(list(between)) == [10, 11, 12]
    assert numbers(await client.history("run:1", since=stored[-3].id).records()) == [1_499, 1_500]
    assert [len(page.records) async for page in client.history("run:1").pages()] == [1_000, 500]


async def test_history_tells_what_was_trimmed(client: Tailrace) -> None:
    await client.publish_many("short:1", counted(1, 500))

    items = [item async for item in client.history("short:1", start="0")]

    assert isinstance(items[0], Gap)
    assert numbers(list(items))[-1] == 500


async def test_history_of_some_types_only(client: Tailrace) -> None:
    await client.publish_many("run:1", [Event("a", {"n": 1}), Event("b", {"n": 2}), Event("a", {"n": 3})])

    assert numbers(await client.history("run:1", types=["a"]).records()) == [1, 3]
