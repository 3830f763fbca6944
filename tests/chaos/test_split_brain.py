"""Two masters at once, half of the gateways on the old one: after the heal its readers, and only they, are told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tailrace.core.event import GapReason
from tests.chaos.stage import PATIENCE, serve, stage
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer, StartRedis, find_port
from tests.support.wait import eventually


async def follows(replica: RedisServer, master: RedisServer) -> None:
    """Make one server a replica, and wait until it has what the other one has."""
    await replica.cli("REPLICAOF", "127.0.0.1", master.port)

    async def in_step() -> bool:
        role = await asyncio.to_thread(replica.cli_sync, "ROLE")
        return bool(role[3] == "connected" and int(await master.cli("WAIT", "1", "100")) == 1)

    await eventually(in_step, PATIENCE)


def switch(link: Proxy, to: RedisServer) -> None:
    """From now on a link leads to another server."""
    link.target = str(to.socket)
    link.reset_all()


@pytest.mark.timeout(240)
async def test_the_readers_of_the_losing_half_are_told(start_redis: StartRedis) -> None:
    quick = {"repl-diskless-sync-delay": "0"}
    old = await start_redis(quick, port=find_port(), limited=False)
    new = await start_redis(quick, port=find_port(), limited=False)
    async with AsyncExitStack() as stack:
        links = [Proxy(str(old.socket)) for _ in range(2)]
        for link in links:
            await link.start()
            stack.push_async_callback(link.aclose)
        left, right = [await stack.enter_async_context(serve(link.url)) for link in links]
        run = await stack.enter_async_context(stage())
        run.attend("left", left)
        run.attend("right", right)
        for url in (left, right):
            await run.works(url)
            await run.publish(url, 4)
        await run.caught_up(old)
        await follows(new, old)

        await new.cli("REPLICAOF", "NO", "ONE")
        switch(links[1], new)
        await run.works(right)
        links[1].reset_all()  # what was being connected to the other one at that moment
        lost = await run.publish(left, 5)
        await run.publish(right, 5)
        await run.caught_up(old, "left")
        await run.caught_up(new, "right")
        # Demoted under the gateway's hands: the connections stay, the history changes, writes are refused.
        await follows(old, new)
        refused = await run.publish(left, 3)
        await run.caught_up(new)
        switch(links[0], new)
        await run.works(left)
        links[0].reset_all()
        await run.publish(right)
        await run.caught_up(new)
        found = await run.judged(new)

    assert all(attempt.outcome == "acked" for attempt in lost)
    assert {one.kind for one in found} == {"lost", "vanished"}, "\n".join(map(str, found[:9]))
    assert sum(one.kind == "lost" for one in found) == len(lost)
    assert (run.codes, {one.outcome for one in refused}) == (["LOG_REFUSED"] * 3, {"refused"})
    assert run.told("left") == run.everybody("left")
    assert run.told("right") == set()
    reasons = {gap.reason for reader in run.readers["left"] for gap in reader.walk.gaps}
    assert reasons <= {GapReason.RESET, GapReason.AHEAD}
