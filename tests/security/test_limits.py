"""Limits on connections that race for the last seats, over several gateways, and from whoever spoofs an address."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx

from tailrace.app import create_app
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import settings_of
from tests.support.redis_servers import RedisServer
from tests.support.serving import Client, Serving, serving
from tests.support.tokens import token
from tests.support.wait import deadline, eventually
from tests.support.ws_raw import handshake

EVENTS = "/streams/run:42/events"
HEADERS = {"Authorization": f"Bearer {token('alice', read=['run:*'], write=['run:*'])}"}
AUTH = f"Authorization: {HEADERS['Authorization']}"
LIMITS = {"max_connections_per_user": 3, "connection_policy": "refuse"}


async def two_gateways(stack: AsyncExitStack, redis: RedisServer, prefix: str) -> list[Serving]:
    """One limit for both."""
    given = settings_of(redis_url=redis.url, key_prefix=prefix, **LIMITS)
    return [await stack.enter_async_context(serving(create_app(given))) for _ in range(2)]


async def test_websockets_that_open_at_once_never_pass_the_limit(redis62: RedisServer, key_prefix: str) -> None:
    async with AsyncExitStack() as stack:
        gates = await two_gateways(stack, redis62, key_prefix)
        clients = [await stack.enter_async_context(gate.client()) for gate in gates * 8]

        await asyncio.gather(*(client.send(handshake("/ws", AUTH)) for client in clients))
        answers = await asyncio.gather(*(first_word(client) for client in clients))

    assert sorted(answers) == [b"open"] * 3 + [b"refused"] * 13


async def first_word(client: Client) -> bytes:
    """The first control event of a WebSocket, or that it had none."""
    async with deadline(60):
        while b'"control":"open"' not in client.received:
            if b"\r\n\r\n\x88" in client.received or b" 429 " in client.received or not await client.more():
                return b"refused"
    return b"open"


async def test_long_polls_that_wait_at_once_never_pass_the_limit(redis62: RedisServer, key_prefix: str) -> None:
    async with AsyncExitStack() as stack:
        gates = await two_gateways(stack, redis62, key_prefix)
        https = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=gate.url, headers=HEADERS, trust_env=False, timeout=60)
            )
            for gate in gates
        ]
        polls = [asyncio.create_task(http.get("/events/poll?stream=run:42&cursor=0&timeout=25")) for http in https * 8]

        await eventually(lambda: sum(poll.done() for poll in polls) == 13, timeout=60)
        assert (await https[0].post(EVENTS, json={"type": "a"})).status_code == 201
        answers = await asyncio.gather(*polls)

    assert sorted(each.status_code for each in answers) == [200] * 3 + [429] * 13


async def test_rotated_addresses_through_one_proxy_are_one_address() -> None:
    given = settings_of(max_connections_per_address=1, connection_policy="refuse", trusted_proxies=("127.0.0.1",))
    async with (
        serving(create_app(given, log=MemoryLog())) as gate,
        gate.client() as reader,
        httpx.AsyncClient(base_url=gate.url, headers=HEADERS, trust_env=False, timeout=60) as http,
    ):
        await reader.get(f"{EVENTS}/stream", AUTH, "X-Forwarded-For: 9.9.9.9")
        await reader.until(b"event: stream.open", seconds=60)

        spoofs = [f"{number >> 8}.{number & 255}.1.1, 9.9.9.9" for number in range(200)]
        answers = [
            await http.get("/events/poll?stream=run:42&timeout=0", headers={"X-Forwarded-For": each}) for each in spoofs
        ]
        other = await http.get("/events/poll?stream=run:42&timeout=0", headers={"X-Forwarded-For": "8.8.8.8"})

    assert {each.status_code for each in answers} == {429}
    assert other.status_code == 200
