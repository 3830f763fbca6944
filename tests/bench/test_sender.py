"""The load generator in C sends what a publisher sends."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
from bench.process import build, child
from bench.sender import sender
from bench.server import open_redis
from bench.stack import open_log

from tailrace.core.event import Record
from tailrace.core.ids import ZERO
from tailrace.core.names import StreamName
from tests.support.need import absent

STREAMS = [StreamName(f"run:sent-{n}") for n in range(3)]


@pytest.fixture(autouse=True)
def compiler() -> None:
    if shutil.which("cc") is None:
        absent("a C compiler", "install the Debian packages gcc and libc6-dev, or run `make test` as root")


async def sent(runs: Sequence[int]) -> tuple[list[dict[str, Any]], list[Sequence[Record]]]:
    """What the sender said of runs of so many calls, and what the streams hold then."""
    async with open_redis() as redis, sender(redis, STREAMS, filler="x" * 20) as process:
        said = []
        for count in runs:
            process.tell(f"run 5000 {count}")
            said.append(json.loads(await process.line(30)))
        async with open_log(redis.url) as log:
            return said, [(await log.read(stream, ZERO)).records for stream in STREAMS]


async def test_every_stream_has_its_share_in_one_chain() -> None:
    said, stored = await sent([30, 60])

    assert [one["failed"] for one in said] == [0, 0]
    assert [sum(one["buckets"]) for one in said] == [30, 60]
    for records in stored:
        assert [record.id.seq for record in records] == [*range(1, 31)]
        assert [record.prev for record in records[1:]] == [record.id for record in records[:-1]]


async def test_every_event_says_when_it_was_due() -> None:
    _, stored = await sent([30])

    due = sorted(json.loads(record.data)["t"] for records in stored for record in records)
    steps = {later - earlier for earlier, later in itertools.pairwise(due)}
    assert {round(step / 1e5) for step in steps} == {2}  # 5 000 a second


async def test_calls_that_redis_refuses_are_counted() -> None:
    async with open_redis({"maxmemory": "1"}) as redis:
        folder = redis.folder
        call = b"*3\r\n$3\r\nSET\r\n$10\r\n0000000000\r\n$19\r\n0000000000000000000\r\n"
        (folder / "calls").write_bytes(b"%d %d %d\n%b" % (len(call), call.index(b"00"), call.rindex(b"\n00") + 1, call))
        async with child([build("sender"), folder / "redis.sock", folder / "calls"]) as process:
            process.tell("run 1000 7")
            said = json.loads(await process.line(30))

    assert said["failed"] == 7
