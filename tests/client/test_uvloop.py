"""The client on uvloop, whose transports are not asyncio's."""

from __future__ import annotations

import asyncio

import uvloop

from tailrace.client.client import Tailrace
from tailrace.client.subscription import Subscription
from tailrace.core.event import Record
from tests.support.faulty import faulty_proxy
from tests.support.gateways import gateway_on, mint


async def scenario() -> list[int]:
    async with (
        gateway_on() as (server, _),
        faulty_proxy(server.port) as proxy,
        Tailrace(proxy.url, token=mint()) as client,
    ):
        reading = asyncio.ensure_future(_rest(client.subscribe("run:1")))
        for n in range(20):
            await client.publish("run:1", "note", n)
            if n % 7 == 0:
                proxy.cut()
        client.emit("run:1", "note", 20)
        await client.flush()
        await client.close_stream("run:1")
        return await reading


async def _rest(subscription: Subscription) -> list[int]:
    return [int(item.data) async for item in subscription if isinstance(item, Record)]


def test_publish_subscribe_and_cut_connections_on_uvloop() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asyncio.wait_for(scenario(), 30)) == list(range(21))
