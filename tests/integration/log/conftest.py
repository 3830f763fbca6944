"""Logs for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio

from tailrace.core.ids import ZERO
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.log import RedisLog

MakeLog = Callable[..., RedisLog]


@pytest_asyncio.fixture
async def make_log(key_prefix: str) -> AsyncIterator[MakeLog]:
    """Make logs that end with the test."""
    made: list[RedisLog] = []

    def make(url: str, **options: Any) -> RedisLog:
        made.append(RedisLog.connect(url, **({"prefix": key_prefix} | options)))
        return made[-1]

    yield make
    await asyncio.gather(*[log.aclose() for log in made])


async def stored(log: RedisLog, stream: StreamName) -> list[int]:
    """The data of all records, which are numbers here."""
    numbers: list[int] = []
    cursor = ZERO
    while True:
        page = await log.read(stream, cursor)
        new = [record for record in page.records if record.id > cursor]
        numbers += [int(record.data) for record in new]
        if not page.more:
            return numbers
        cursor = new[-1].id
