"""Ten thousand cancelled calls on a slow network: nobody is ever given another one's reply."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.integration.log.conftest import MakeLog
from tests.support.proxy import StartProxy
from tests.support.redis_servers import RedisServer

from tailrace.core.event import Event
from tailrace.core.ids import ZERO
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.log import RedisLog

STREAMS = [StreamName.parse(f"run:{number}") for number in range(20)]
WAVES, CALLS, SPARED = 105, 120, 24


async def ask(log: RedisLog, stream: StreamName, value: str) -> str:
    """One call; its own value when the answer is its own."""
    if value.startswith("read"):
        page = await log.read(stream, ZERO, limit=1)
        return value if bytes(page.records[0].data) == f'"{stream}"'.encode() else f"a record of {page.records}"
    (answer,) = await log.append(stream, [Event("n", value)])
    page = await log.read(stream, answer.id, limit=1)
    return value if bytes(page.records[0].data) == f'"{value}"'.encode() else f"{answer} is {page.records}"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_no_reply_reaches_the_wrong_caller(
    make_log: MakeLog, redis70: RedisServer, start_proxy: StartProxy
) -> None:
    chance = random.Random(15)
    proxy = await start_proxy(str(redis70.socket))
    log = make_log(proxy.url, deadline=60.0)
    for stream in STREAMS:
        await log.append(stream, [Event("n", str(stream))])
    proxy.latency = 0.005
    cancelled = 0

    for wave in range(WAVES):
        tasks = {}
        for number in range(CALLS):
            value = f"{chance.choice(('read', 'append'))}-{wave}-{number}"
            tasks[asyncio.create_task(ask(log, chance.choice(STREAMS), value))] = value
        for task in chance.sample(list(tasks), CALLS - SPARED):
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.002), task.cancel)
        await asyncio.wait(tasks)
        cancelled += sum(task.cancelled() for task in tasks)
        answered = {value: task.result() for task, value in tasks.items() if not task.cancelled()}
        assert answered == {value: value for value in answered}
        assert len(answered) >= SPARED

    assert cancelled >= 10_000
