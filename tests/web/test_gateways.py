"""Several gateways on one Redis: one count, one revocation, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tailrace.app import create_app
from tailrace.codes import CloseCode
from tailrace.eventlog.leases import Seat, Verdict
from tailrace.eventlog.redis.leases import RedisLeases
from tailrace.web.gateway import Gateway
from tests.support.gateway import settings_of
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.serving import Client, serving
from tests.support.tokens import token
from tests.support.wait import eventually

PATH = "/api/v1/streams/run:42/events"
ALICE = token("alice", read=["run:*"], write=["run:*"])


class One:
    """One gateway of several."""

    def __init__(self, url: str, client: Any, gateway: Gateway) -> None:
        self.url = url
        self.client = client
        self.gateway = gateway

    async def ask(self, method: str, path: str, auth: str = ALICE, **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http:
            headers = {"Authorization": f"Bearer {auth}"} if auth else {}
            return await http.request(method, path, headers=headers, **more)

    @asynccontextmanager
    async def follow(self, query: str = "", *, auth: str | None = ALICE) -> AsyncIterator[Client]:
        async with self.client() as client:
            lines = [f"Authorization: Bearer {auth}"] if auth else []
            await client.get(f"{PATH}/stream?{query}", "Accept: text/event-stream", *lines)
            yield client


@asynccontextmanager
async def gateway(server: RedisServer, prefix: str, **settings: Any) -> AsyncIterator[One]:
    app = create_app(settings_of(redis_url=server.url, key_prefix=prefix, recheck_seconds=0.1, **settings))
    async with serving(app) as served:
        yield One(served.url, served.client, app.state.gateway)


async def closed_with(client: Client) -> bytes:
    await client.until(b"event: stream.closed\ndata: ")
    return await client.until(b"\n\n")


def code(number: CloseCode) -> bytes:
    return b'"code":%d' % number


async def test_limit_counts_over_all_gateways_and_the_oldest_anywhere_goes(
    redis70: RedisServer, key_prefix: str
) -> None:
    limits = {"max_connections_per_user": 2}
    async with (
        gateway(redis70, key_prefix, **limits) as a,
        gateway(redis70, key_prefix, **limits) as b,
        a.follow("connection=1") as first,
        b.follow("connection=2") as second,
    ):
        await first.until(b"event: stream.open")
        await second.until(b"event: stream.open")
        async with b.follow("connection=3") as third:
            await third.until(b"event: stream.open")
            assert code(CloseCode.REPLACED) in await closed_with(first)
            async with b.follow("connection=1") as again:
                assert b" 204 " in await again.until(b"\r\n\r\n")
            assert (await a.ask("POST", PATH, json={"type": "a", "data": 7})).status_code == 201
            for client in (second, third):
                await client.until(b'"data":7}')


async def test_refused_over_all_gateways_and_free_again_when_one_leaves(redis70: RedisServer, key_prefix: str) -> None:
    limits = {"max_connections_per_user": 1, "connection_policy": "refuse"}
    async with gateway(redis70, key_prefix, **limits) as a, gateway(redis70, key_prefix, **limits) as b:
        async with a.follow() as first:
            await first.until(b"event: stream.open")
            async with b.follow() as second:
                await second.until(b"event: stream.refused")
        assert await eventually(lambda: _opens(b))


async def _opens(one: One) -> bool:
    async with one.follow() as client:
        return b"event: stream.open" in await client.until(b"\n\n")


async def test_parallel_openings_never_pass_the_limit(redis70: RedisServer, key_prefix: str) -> None:
    limits = {"max_connections_per_user": 3, "connection_policy": "refuse"}
    async with gateway(redis70, key_prefix, **limits) as a, gateway(redis70, key_prefix, **limits) as b:
        clients = [await Client.open(int(one.url.rpartition(":")[2])) for one in (a, b) * 10]
        try:
            head = ("Accept: text/event-stream", f"Authorization: Bearer {ALICE}")
            await asyncio.gather(*(client.get(f"{PATH}/stream", *head) for client in clients))
            answers = await asyncio.gather(*(client.until(b"data: ") for client in clients))
        finally:
            for client in clients:
                client.close()

    assert sum(b"event: stream.open" in answer for answer in answers) == 3


async def test_revocation_on_one_gateway_ends_connections_and_tokens_on_the_other(
    redis70: RedisServer, key_prefix: str
) -> None:
    async with gateway(redis70, key_prefix) as a, gateway(redis70, key_prefix) as b:
        short = (await a.ask("POST", "/api/v1/auth/sse-token")).json()["sse_token"]
        async with b.follow(f"sse_token={short}", auth=None) as one, b.follow() as two:
            await one.until(b"event: stream.open")
            await two.until(b"event: stream.open")
            assert (await a.ask("POST", "/api/v1/auth/revoke")).status_code == 204
            assert code(CloseCode.UNAUTHORIZED) in await closed_with(one)
            assert code(CloseCode.UNAUTHORIZED) in await closed_with(two)
        assert (await b.ask("GET", PATH)).status_code == 401
        assert (await a.ask("GET", f"/api/v1/events/poll?timeout=0&sse_token={short}", "")).status_code == 401


async def test_short_token_of_one_gateway_is_used_on_the_other_by_the_newest(
    redis70: RedisServer, key_prefix: str
) -> None:
    async with gateway(redis70, key_prefix) as a, gateway(redis70, key_prefix) as b:
        short = (await a.ask("POST", "/api/v1/auth/sse-token")).json()["sse_token"]
        async with a.follow(f"sse_token={short}", auth=None) as older:
            await older.until(b"event: stream.open")
            async with b.follow(f"sse_token={short}", auth=None) as newer:
                await newer.until(b"event: stream.open")
                assert code(CloseCode.REPLACED) in await closed_with(older)


async def test_all_seats_are_given_back_at_the_end_of_a_gateway(redis70: RedisServer, key_prefix: str) -> None:
    async with gateway(redis70, key_prefix) as one:
        async with one.follow() as client:
            await client.until(b"event: stream.open")
            assert len(await redis70.cli("HGETALL", f"{key_prefix}seats:{{u:alice}}")) == 2
        await eventually(lambda: len(one.gateway.connections) == 0)
        await eventually(lambda: _empty(redis70, f"{key_prefix}seats:{{u:alice}}"))


async def _empty(server: RedisServer, key: str) -> bool:
    return not await server.cli("HGETALL", key)


async def test_seat_of_a_killed_gateway_ends_by_itself(redis70: RedisServer, key_prefix: str) -> None:
    dead = RedisLeases(redis70.url, prefix=key_prefix)
    await dead.admit(Seat("u:alice", "m", "n"), limit=1, evict=False)
    await dead.aclose()
    # Its last refresh was 30 s ago.
    key = f"{key_prefix}seats:{{u:alice}}"
    (_, seat) = await redis70.cli("HGETALL", key)
    text = seat if isinstance(seat, str) else seat.decode()
    nonce, opened, until = text.split("|")
    await redis70.cli("HSET", key, "m", f"{nonce}|{opened}|{int(until) - 30_001}")

    alive = RedisLeases(redis70.url, prefix=key_prefix)
    admission = await alive.admit(Seat("u:alice", "m2", "n2"), limit=1, evict=False)
    await alive.aclose()

    assert admission.verdict is Verdict.ADMITTED


@pytest.mark.parametrize("policy", ["evict_oldest", "refuse"])
async def test_while_redis_is_away_readers_stay_and_the_gateway_counts_by_itself(
    policy: str, start_redis: StartRedis
) -> None:
    server = await start_redis({"appendonly": "yes"})
    limits = {"max_connections_per_user": 1, "connection_policy": policy}
    async with gateway(server, "t:", **limits) as one, one.follow("connection=1") as reader:
        await reader.until(b"event: stream.open")
        await server.kill()
        await reader.until(b"event: stream.degraded")
        async with one.follow("connection=2") as late:
            await late.until(b"event: stream.refused")
        await server.start()
        await eventually(lambda: _published(one), timeout=8)
        await reader.until(b'"data":7}')


async def _published(one: One) -> bool:
    return (await one.ask("POST", PATH, json={"type": "a", "data": 7})).status_code == 201


async def test_flushed_redis_gets_seats_and_short_tokens_back(start_redis: StartRedis) -> None:
    server = await start_redis()
    limits = {"max_connections_per_user": 1, "connection_policy": "refuse"}
    async with gateway(server, "t:", **limits) as one:
        short = (await one.ask("POST", "/api/v1/auth/sse-token")).json()["sse_token"]
        async with one.follow(f"sse_token={short}", auth=None) as client:
            await client.until(b"event: stream.open")
            await server.cli("FLUSHALL")
            await eventually(lambda: _refused(one))
        await eventually(lambda: _empty(server, "t:seats:{u:alice}"))
        async with one.follow(f"sse_token={short}", auth=None) as again:
            await again.until(b"event: stream.open")


async def _refused(one: One) -> bool:
    async with one.follow() as client:
        return b"event: stream.refused" in await client.until(b"\n\n")
