"""History says the same over the log on Redis as over the log in memory."""

from __future__ import annotations

from typing import Any

from tailrace.config import KindSettings
from tailrace.eventlog.redis.log import RedisLog
from tests.support.gateway import Api, api, settings_of
from tests.support.redis_servers import RedisServer

KINDS = {"short": KindSettings(max_length=100)}


def numbered(count: int, *, size: int = 0) -> list[dict[str, Any]]:
    return [{"type": "ab"[number % 2], "data": [number, "x" * size]} for number in range(count)]


def shape(page: dict[str, Any]) -> Any:
    """A page without what differs between two logs."""
    return (
        [each["data"][0] for each in page["events"]],
        page["has_more"],
        [(gap["reason"], gap["missed"]) for gap in page["gaps"]],
        page.get("state"),
    )


async def story(it: Api) -> list[Any]:
    """What a reader is told in many places of four streams."""
    run = await it.publish("run:1", *numbered(30))
    short = await it.publish("short:1", *numbered(500))
    gone = await it.publish("run:gone", *numbered(3))
    await it.call("DELETE", "/api/v1/streams/run:gone")
    again = await it.publish("run:again", *numbered(3))
    await it.call("DELETE", "/api/v1/streams/run:again")
    await it.publish("run:again", *numbered(2))
    big = await it.publish("run:big", *numbered(7, size=1_000_000))
    told: list[Any] = []
    for stream, queries in {
        "run:1": [
            "limit=7",
            f"limit=7&start_id={run[7]}",
            f"since_id={run[20]}",
            f"since_id={run[29]}",
            "since_id=9999999999999-1",
            f"start_id={run[3]}&end_id={run[5]}",
            "order=desc&limit=4",
            f"order=desc&limit=4&end_id={run[10]}",
            "types=a&limit=5",
        ],
        "short:1": ["limit=3", f"since_id={short[5]}&limit=3", f"start_id={short[5]}&limit=3", "order=desc&limit=1000"],
        "run:gone": ["", f"since_id={gone[0]}", f"since_id={gone[2]}", "order=desc"],
        "run:again": [f"since_id={again[0]}", f"since_id={again[2]}", f"start_id={again[1]}", "order=desc"],
        "run:big": ["", f"start_id={big[2]}", "order=desc"],
        "run:never": ["", "since_id=1-1", "order=desc"],
    }.items():
        for query in queries:
            answer = await it.call("GET", f"/api/v1/streams/{stream}/events?{query}")
            assert answer.status_code == 200, answer.text
            told.append((stream, query.replace(run[0], ""), shape(answer.json())))
    merged = await it.call("GET", "/api/v1/events/history?stream=run:1&stream=run:again&stream=short:1&limit=50")
    told.append(("merged", shape(merged.json())[2]))
    return told


def comparable(told: list[Any]) -> list[Any]:
    return [(each[0], each[-1]) for each in told]


async def test_both_logs_tell_the_same_story(redis70: RedisServer, key_prefix: str) -> None:
    kinds = settings_of(kinds=KINDS).stream_kinds()
    log = RedisLog.connect(redis70.url, kinds=kinds, prefix=key_prefix)
    async with api(log=log, kinds=KINDS) as it:
        on_redis = comparable(await story(it))
    await log.aclose()
    async with api(kinds=KINDS) as it:
        in_memory = comparable(await story(it))

    # Retention keeps at least the kind's length; how much more differs.
    exact = [index for index, (stream, _) in enumerate(in_memory) if stream not in ("short:1", "merged")]
    assert [on_redis[index] for index in exact] == [in_memory[index] for index in exact]
    for (stream, told), (_, expected) in zip(on_redis, in_memory, strict=True):
        if stream == "short:1":
            assert (len(told[0]) > 0, told[1], [reason for reason, _ in told[2]]) == (
                True,
                expected[1],
                [reason for reason, _ in expected[2]],
            )
