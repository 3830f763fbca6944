"""What everybody in a run holds, before it and after it: descriptors, connections, seats, tasks."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import psutil

from tests.chaos.load import PREFIX
from tests.chaos.wire import http_client
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

__all__ = ["expect_nothing_left", "footprint", "metric", "settled"]

SLACK = {"task": 8, "desc": 8, "conn": 6, "tail": 0}
"""By how a part's name begins: connections to Redis are made when they are needed, and stay."""
SETTLED_SECONDS = 3.0
START_SECONDS = 120.0


def metric(text: str, name: str) -> float:
    """A metric, over all of its labels."""
    return sum(float(found) for found in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


async def footprint(arena: Arena) -> dict[str, int]:
    """What everybody holds: descriptors, connections, seats, tasks."""
    found = {"tasks of the clients": len(asyncio.all_tasks())}
    for gateway in arena.gateways:
        process = psutil.Process(gateway.pid)
        held = sum(each.num_fds() for each in (process, *process.children()))
        found[f"descriptors of {gateway.url}"] = held
    found["connections to Redis"] = int((await arena.redis.info("clients"))["connected_clients"])
    async with http_client() as client:
        text = (await client.get(f"{arena.gateways[0].url}/metrics")).text
    # The probe reads too.
    for name in ("tailrace_connections", "tailrace_subscriptions"):
        found[name] = int(metric(text, name))
    found["tailrace_seats"] = await _seats(arena)
    return found


async def _seats(arena: Arena) -> int:
    """How many connections are counted in Redis for their users (PROTOCOL.md §9.5); a killed gateway's run out."""
    now, seats = time.time() * 1_000, 0
    for key in await arena.redis.cli("KEYS", f"{PREFIX}seats:*"):
        seats += sum(float(seat.rpartition("|")[2]) > now for seat in await arena.redis.cli("HVALS", key))
    return seats


async def settled(arena: Arena) -> dict[str, int]:
    """The same, once every worker reads and it has not grown for a while: one of them makes a gateway ready, and
    features connect a moment later."""

    async def all_read() -> bool:
        clients = str(await arena.redis.cli("CLIENT", "LIST"))
        return clients.count(" name=tailrace-push ") >= sum(arena.load.workers)

    await eventually(all_read, START_SECONDS, every=0.1)
    most, since = await footprint(arena), time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        await asyncio.sleep(0.2)
        now = await footprint(arena)
        if any(now[name] > most[name] for name in now):
            most, since = {name: max(most[name], now[name]) for name in now}, time.monotonic()
    return most


async def expect_nothing_left(arena: Arena, before: dict[str, int], *, patience: float) -> None:
    """When all clients are gone, everything they took is given back."""

    async def given_back() -> bool:
        now = await footprint(arena)
        left = {name: (before[name], number) for name, number in now.items() if number > before[name] + SLACK[name[:4]]}
        assert not left, left
        return True

    try:
        await eventually(given_back, patience, every=0.2)
    except AssertionError as error:
        arena.board.complain("left over", "everybody", "", str(error))
