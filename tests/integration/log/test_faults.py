"""What happens to appends when the server, the network or the process fails: stored once, or said so."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial

import pytest
import pytest_asyncio
from tests.integration.log.conftest import MakeLog, stored
from tests.support.proxy import Proxy, StartProxy
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

from tailrace.core.event import Event
from tailrace.core.ids import ZERO
from tailrace.core.names import StreamName
from tailrace.errors import LogRefused, LogTimeout, LogUnavailable, OutcomeUnknown, TailraceError

RUN = StreamName.parse("run:1")
USER = StreamName.parse("user:load")


@pytest_asyncio.fixture
async def proxy(redis70: RedisServer, start_proxy: StartProxy) -> Proxy:
    """Before the shared server."""
    return await start_proxy(str(redis70.socket))


async def test_a_lost_reply_is_settled_by_sending_the_same_call_again(
    make_log: MakeLog, redis70: RedisServer, proxy: Proxy
) -> None:
    log, direct = make_log(proxy.url), make_log(redis70.url)
    await log.append(RUN, [Event("n", 0)])
    proxy.drop_replies = True
    append = asyncio.ensure_future(log.append(RUN, [Event("n", 1), Event("n", 2)]))
    await eventually(lambda: proxy.dropped)

    proxy.restore()
    proxy.reset_all()
    answers = await append

    assert [answer.id.seq for answer in answers] == [2, 3]
    assert await stored(direct, RUN) == [0, 1, 2]


async def test_a_busy_loop_is_no_evidence_against_the_server(make_log: MakeLog, redis70: RedisServer) -> None:
    log = make_log(redis70.url)
    append = asyncio.ensure_future(log.append(RUN, [Event("n", 1)]))
    asked = asyncio.ensure_future(log.heads([RUN]))
    while not any(task.get_name().startswith("connect") for task in asyncio.all_tasks()):
        await asyncio.sleep(0)
    for _ in range(3):
        busy_until = time.monotonic() + 0.5
        while time.monotonic() < busy_until:
            pass
        await asyncio.sleep(0)

    assert [answer.id.seq for answer in await append] == [1]
    assert RUN in await asked


async def test_an_answer_that_never_comes_is_an_unknown_outcome_and_its_receipt_settles_it(
    make_log: MakeLog, redis70: RedisServer, proxy: Proxy
) -> None:
    log, direct = make_log(proxy.url, deadline=0.5), make_log(redis70.url)
    await log.append(RUN, [Event("n", 0)])
    proxy.drop_replies = True

    with pytest.raises(OutcomeUnknown) as caught:
        await log.append(RUN, [Event("n", 1)])
    proxy.restore()
    proxy.reset_all()
    (answer,) = await log.retry(caught.value.receipt)
    (again,) = await log.retry(caught.value.receipt)
    await log.append(RUN, [Event("n", 2)])

    assert answer.id == again.id
    assert answer.id.seq == 2
    assert await stored(direct, RUN) == [0, 1, 2]


async def test_a_receipt_stays_good_while_the_log_is_away(
    make_log: MakeLog, redis70: RedisServer, proxy: Proxy
) -> None:
    log, direct = make_log(proxy.url, deadline=0.4), make_log(redis70.url)
    proxy.black_hole = True
    await direct.append(RUN, [Event("n", 0)])
    proxy.black_hole = False
    await log.append(RUN, [Event("n", 1)])
    proxy.drop_replies = True
    with pytest.raises(OutcomeUnknown) as first:
        await log.append(RUN, [Event("n", 2)])

    with pytest.raises(OutcomeUnknown) as second:
        await log.retry(first.value.receipt)
    proxy.restore()
    proxy.reset_all()
    await log.retry(second.value.receipt)

    assert await stored(direct, RUN) == [0, 1, 2]


async def test_callers_that_left_together_each_get_their_own_part_back(
    make_log: MakeLog, redis70: RedisServer, proxy: Proxy
) -> None:
    log, direct = make_log(proxy.url, deadline=0.4), make_log(redis70.url)
    await log.append(RUN, [Event("n", 0)])
    proxy.drop_replies = True

    outcomes = await asyncio.gather(
        *[log.append(RUN, [Event("n", n), Event("n", n + 1)]) for n in (1, 3, 5)], return_exceptions=True
    )
    proxy.restore()
    proxy.reset_all()
    receipts = [outcome.receipt for outcome in outcomes if isinstance(outcome, OutcomeUnknown)]
    answers = [await log.retry(receipt) for receipt in reversed(receipts)]

    assert [[one.id.seq for one in answer] for answer in answers] == [[6, 7], [4, 5], [2, 3]]
    assert await stored(direct, RUN) == list(range(7))


async def test_the_breaker_opens_within_a_second_and_closes_again(make_log: MakeLog, proxy: Proxy) -> None:
    log = make_log(proxy.url)
    proxy.refuse = True

    started = time.monotonic()
    with pytest.raises(LogUnavailable):
        await log.append(RUN, [Event("n", 1)])
    opened = time.monotonic()
    for _ in range(100):
        with pytest.raises(LogUnavailable):
            await log.append(RUN, [Event("n", 1)])
    failed_fast = time.monotonic()
    proxy.restore()

    async def works() -> bool:
        try:
            return bool(await log.append(RUN, [Event("n", 2)]))
        except LogUnavailable:
            return False

    await eventually(works, every=0.05)
    assert opened - started < 1.0
    assert failed_fast - opened < 0.3
    assert await stored(log, RUN) == [2]


async def test_a_short_interruption_is_not_seen(make_log: MakeLog, proxy: Proxy) -> None:
    log = make_log(proxy.url)
    await log.append(RUN, [Event("n", 0)])

    proxy.reset_all()
    await log.append(RUN, [Event("n", 1)])

    assert await stored(log, RUN) == [0, 1]


async def test_what_came_while_the_process_stood_still_is_an_answer(make_log: MakeLog, redis70: RedisServer) -> None:
    log = make_log(redis70.url, deadline=0.4)
    await log.append(RUN, [Event("n", 0)])
    sent = asyncio.ensure_future(log.append(RUN, [Event("n", 1)]))
    for _ in range(3):
        await asyncio.sleep(0)  # it leaves

    time.sleep(1.0)  # the fault itself: nothing runs here, and the server answers

    (answer,) = await sent
    assert answer.id.seq == 2


async def test_nothing_that_was_not_sent_is_stored_later(make_log: MakeLog, proxy: Proxy) -> None:
    log = make_log(proxy.url, deadline=0.3)
    proxy.refuse = True

    with pytest.raises(LogTimeout):
        await log.append(RUN, [Event("n", 1)])
    proxy.restore()

    async def works() -> bool:
        try:
            return bool(await log.append(RUN, [Event("n", 2)]))
        except LogUnavailable:
            return False

    await eventually(works, every=0.05)
    assert await stored(log, RUN) == [2]


async def test_a_frozen_server_fails_new_appends_at_once_and_stores_what_it_was_sent_once(
    make_log: MakeLog, start_redis: StartRedis
) -> None:
    server = await start_redis()
    log = make_log(server.url, deadline=1.5)
    await log.append(RUN, [Event("n", 0)])
    server.pause()
    sent = asyncio.ensure_future(log.append(RUN, [Event("n", 1)]))

    async def refused() -> float:
        started = time.monotonic()
        task = asyncio.ensure_future(log.append(StreamName.parse("run:other"), [Event("n", 9)]))
        done, _ = await asyncio.wait([task], timeout=0.05)
        if not done:
            task.cancel()
            return 0.0
        return time.monotonic() - started if isinstance(task.exception(), LogUnavailable) else 0.0

    await eventually(refused, timeout=1.2)
    with pytest.raises(OutcomeUnknown) as caught:
        await sent
    server.resume()
    (answer,) = await log.retry(caught.value.receipt)

    assert answer.id.seq == 2
    assert await stored(log, RUN) == [0, 1]


async def test_appends_go_on_when_a_frozen_server_answers_again_in_time(
    make_log: MakeLog, start_redis: StartRedis
) -> None:
    server = await start_redis()
    log = make_log(server.url)
    await log.append(RUN, [Event("n", 0)])
    server.pause()
    sent = [asyncio.ensure_future(log.append(RUN, [Event("n", n)])) for n in range(1, 4)]
    await asyncio.wait(sent, timeout=0.9)

    server.resume()
    outcomes = await asyncio.gather(*sent, return_exceptions=True)

    acknowledged = [n for n, outcome in enumerate(outcomes, 1) if isinstance(outcome, list)]
    assert 1 in acknowledged
    assert await stored(log, RUN) == [0, *acknowledged]


async def test_what_was_acknowledged_survives_kill_9_under_load_once_and_in_order(
    make_log: MakeLog, start_redis: StartRedis
) -> None:
    server = await start_redis()
    log = make_log(server.url, deadline=3.0)
    acknowledged: list[list[int]] = [[] for _ in range(8)]
    unknown: list[int] = []
    stop = asyncio.Event()

    async def publish(worker: int) -> None:
        n = worker
        while not stop.is_set():
            try:
                await log.append(USER, [Event("n", n)])
                acknowledged[worker].append(n)
            except OutcomeUnknown:
                unknown.append(n)
            except LogUnavailable:
                await asyncio.sleep(0.05)
                continue
            n += 8

    def enough(count: int) -> bool:
        return sum(map(len, acknowledged)) >= count

    workers = [asyncio.ensure_future(publish(worker)) for worker in range(8)]
    for count in (500, 1_000, 1_500):
        await eventually(partial(enough, count), timeout=20)
        await server.restart()
    await eventually(partial(enough, 2_500), timeout=20)
    stop.set()
    await asyncio.gather(*workers)

    numbers = await stored(log, USER)
    assert len(numbers) == len(set(numbers))
    assert set(numbers) - set(unknown) == {n for mine in acknowledged for n in mine} - set(unknown)
    for worker, mine in enumerate(acknowledged):
        assert [n for n in numbers if n % 8 == worker and n not in unknown] == mine


async def test_flushed_scripts_cost_neither_order_nor_events(make_log: MakeLog, start_redis: StartRedis) -> None:
    server = await start_redis()
    log = make_log(server.url)

    async def publish() -> None:
        for n in range(300):
            await log.append(RUN, [Event("n", n)])
            if n % 50 == 0:
                await server.cli("SCRIPT", "FLUSH")

    await publish()
    batch = [asyncio.ensure_future(log.append(RUN, [Event("n", n)])) for n in range(300, 400)]
    await server.cli("SCRIPT", "FLUSH")
    await asyncio.gather(*batch)

    assert await stored(log, RUN) == list(range(400))


@pytest.mark.parametrize("version", ["5.0", "6.2", "7.0"])
async def test_a_full_server_refuses_and_stores_nothing(
    make_log: MakeLog, start_redis: StartRedis, version: str
) -> None:
    server = await start_redis({"appendonly": "no"}, version=version)
    log = make_log(server.url)
    await log.append(RUN, [Event("n", 0)])
    await server.cli("CONFIG", "SET", "maxmemory", "1")

    with pytest.raises(LogRefused) as caught:
        await log.append(RUN, [Event("n", 1), Event("n", 2)])

    assert caught.value.data["reason"] == "OOM"
    assert await stored(log, RUN) == [0]
    await server.cli("CONFIG", "SET", "maxmemory", "0")
    await log.append(RUN, [Event("n", 3)])
    assert await stored(log, RUN) == [0, 3]


REPLICA = ("REPLICAOF", "127.0.0.1", "1")
LONELY = ("CONFIG", "SET", "min-replicas-to-write", "1")


@pytest.mark.parametrize(
    ("version", "command", "reason"),
    [
        ("5.0", REPLICA, "READONLY"),
        ("6.2", REPLICA, "READONLY"),
        ("7.0", REPLICA, "READONLY"),
        # Redis 5.0 does not ask for replicas when a script writes.
        ("6.2", LONELY, "NOREPLICAS"),
        ("7.0", LONELY, "NOREPLICAS"),
    ],
)
async def test_a_server_that_cannot_write_refuses_and_stores_nothing(
    make_log: MakeLog, start_redis: StartRedis, version: str, command: tuple[str, ...], reason: str
) -> None:
    server = await start_redis({"appendonly": "no"}, version=version)
    log = make_log(server.url)
    await log.append(RUN, [Event("n", 0)])
    await server.cli(*command)

    with pytest.raises(LogRefused) as caught:
        await log.append(RUN, [Event("n", 1)])

    assert caught.value.data["reason"] == reason
    assert await stored(log, RUN) == [0]


async def test_a_server_that_loads_its_data_is_waited_for(make_log: MakeLog, start_redis: StartRedis) -> None:
    server = await start_redis({"key-load-delay": "1000", "loading-process-events-interval-bytes": "1024"})
    for n in range(200):
        await server.cli("SET", f"k{n}", "x" * 100)
    log = make_log(server.url)
    await log.append(RUN, [Event("n", 0)])
    await server.kill()
    await server.start(wait=False)

    async def works() -> bool:
        try:
            return bool(await log.append(RUN, [Event("n", 1)]))
        except LogUnavailable:
            return False

    await eventually(works, timeout=10, every=0.05)
    assert await stored(log, RUN) == [0, 1]


async def test_too_much_that_waits_is_refused_at_once(
    make_log: MakeLog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.eventlog.redis.publisher.MAX_WAITING_BYTES", 10_000)
    log = make_log(proxy.url, deadline=0.4)
    proxy.black_hole = True

    outcomes = await asyncio.gather(
        *[log.append(StreamName.parse(f"run:{n}"), [Event("n", "x" * 3_000)]) for n in range(5)],
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes] == [LogTimeout] * 3 + [LogUnavailable] * 2


async def test_callers_that_gave_up_leave_no_bytes_behind(
    make_log: MakeLog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.eventlog.redis.publisher.MAX_WAITING_BYTES", 10_000)
    log = make_log(proxy.url)
    proxy.latency = 0.02
    for _ in range(10):
        tasks = [asyncio.ensure_future(log.append(RUN, [Event("n", "x" * 3_000)])) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    await log.append(RUN, [Event("n", 1)])  # what comes in line behind them
    outcomes = await asyncio.gather(*[log.append(RUN, [Event("n", "x" * 3_000)]) for _ in range(3)])

    assert len(outcomes) == 3


async def test_a_large_page_does_not_delay_an_append(make_log: MakeLog, redis70: RedisServer) -> None:
    log = make_log(redis70.url)
    for n in range(8):
        await log.append(RUN, [Event("large", "x" * 1_000_000), Event("n", n)])

    pages = [asyncio.ensure_future(log.read(RUN, ZERO)) for _ in range(20)]
    await log.append(RUN, [Event("n", 1)])
    behind = sum(not page.done() for page in pages)
    await asyncio.gather(*pages)

    assert behind > 0


async def test_every_failure_of_an_append_is_one_of_ours(make_log: MakeLog, proxy: Proxy) -> None:
    log = make_log(proxy.url, deadline=0.3)
    await log.append(RUN, [Event("n", 0)])
    failures: list[BaseException] = []

    for fault in ("drop_replies", "black_hole", "refuse"):
        setattr(proxy, fault, True)
        if fault == "refuse":
            proxy.reset_all()
        outcomes = await asyncio.gather(
            *[log.append(StreamName.parse(f"run:{n}"), [Event("n", n)]) for n in range(20)], return_exceptions=True
        )
        failures += [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        proxy.restore()
        proxy.reset_all()

    assert failures
    assert all(isinstance(failure, TailraceError) and failure.status == 503 for failure in failures)


@pytest.mark.parametrize("version", ["6.2", "7.0"])
@pytest.mark.parametrize("rewritten", [True, False])
async def test_a_redis_that_lost_half_a_script_needs_its_file_rewritten(
    make_log: MakeLog, start_redis: StartRedis, version: str, rewritten: bool
) -> None:
    """What docs/faults.md tells operators to do, and what happens to who does not: Redis keeps the first half in the
    file, and at the next start runs it together with what was written behind it."""
    server = await start_redis({"appendfsync": "always"}, version=version)
    log = make_log(server.url)
    for number in range(3):
        await log.append(RUN, [Event("n", number)])
    await server.kill()
    (path,) = server.folder.rglob("*.incr.aof" if version == "7.0" else "*.aof")
    os.truncate(path, path.stat().st_size - 5)

    await server.start()
    if rewritten:
        await server.rewrite()
    await log.append(RUN, [Event("n", 10)])
    await server.restart()
    page = await log.read(RUN, ZERO)

    unbroken = [record.prev for record in page.records] == [ZERO, *(record.id for record in page.records[:-1])]
    assert [int(record.data) for record in page.records][-3:] == ([0, 1, 10] if rewritten else [1, 2, 10])
    assert unbroken is rewritten
