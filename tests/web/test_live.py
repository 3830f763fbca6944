"""SSE through a real server: limits, tokens, revocation, refusals."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tailrace.app import create_app
from tailrace.codes import CloseCode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.leases import BARRED_SECONDS, MemoryLeases
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.gateway import Gateway
from tailrace.web.principal import Action, Principal
from tests.support.gateway import settings_of
from tests.support.serving import Client, Serving, serving
from tests.support.tokens import token
from tests.support.wait import eventually

RUN = StreamName.parse("run:42")
ROOT = token("root", admin=True)


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Live:
    """A served application and its inside."""

    def __init__(self, serving: Serving, gateway: Gateway, log: MemoryLog, clock: Clock) -> None:
        self.serving = serving
        self.gateway = gateway
        self.log = log
        self.clock = clock

    async def publish(self, *numbers: int, stream: StreamName = RUN) -> None:
        await self.log.append(stream, [Event("n", number) for number in numbers])

    async def ask(self, method: str, path: str, auth: str | None = ROOT, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {auth}"} if auth else {}
        async with httpx.AsyncClient(base_url=self.serving.url, timeout=5, trust_env=False) as client:
            return await client.request(method, path, headers={**headers, **more.pop("headers", {})}, **more)

    async def mint(self, auth: str = ROOT) -> str:
        answer = await self.ask("POST", "/api/v1/auth/sse-token", auth)
        assert answer.status_code == 200, answer.text
        assert answer.json()["expires_in"] == 60
        made: str = answer.json()["sse_token"]
        return made

    @asynccontextmanager
    async def follow(
        self, query: str = "", *headers: str, auth: str | None = ROOT, stream: str = "run:42"
    ) -> AsyncIterator[Client]:
        """An EventSource: everything it is sent can be read with `until`."""
        lines = ["Accept: text/event-stream", *headers]
        if auth is not None:
            lines.append(f"Authorization: Bearer {auth}")
        async with self.serving.client() as client:
            await client.get(f"/api/v1/streams/{stream}/events/stream?{query}", *lines)
            yield client


@asynccontextmanager
async def live(*, create: Any = None, **settings: Any) -> AsyncIterator[Live]:
    given = settings_of(recheck_seconds=0.05, **settings)
    clock = Clock()
    log = MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=log, leases=MemoryLeases(clock=clock), **(create or {}))
    gateway: Gateway = app.state.gateway
    gateway.access._clock = clock
    async with serving(app, drain=lambda: gateway.drain(0)) as served:
        yield Live(served, gateway, log, clock)
    await log.aclose()


async def status_of(client: Client) -> int:
    return int((await client.until(b"\r\n\r\n")).split(b" ")[1])


async def closed_with(client: Client) -> int:
    """The code of `stream.closed`."""
    await client.until(b"event: stream.closed\ndata: ")
    made: int = json.loads((await client.until(b"\n\n")).strip())["code"]
    return made


# -- reading -----------------------------------------------------------------------------------------------


async def test_records_come_as_they_are_published_and_resume_follows_the_header() -> None:
    async with live() as it:
        await it.publish(1, 2)
        async with it.follow() as client:
            assert await status_of(client) == 200
            await client.until(b'"data":2}')
            await it.publish(3)
            seen = await client.until(b'"data":3}')
        last = seen.rpartition(b'"id":"')[2].partition(b'"')[0].decode()
        await it.publish(4)
        async with it.follow("last_event_id=0", f"Last-Event-ID: {last}") as client:
            again = await client.until(b'"data":4}')

    assert b'"data":3' not in again


async def test_reader_without_streams_is_given_its_own() -> None:
    async with live() as it, it.serving.client() as client:
        await client.get("/api/v1/events/stream", f"Authorization: Bearer {token('auth0|1')}")
        await client.until(b"event: stream.open")
        await it.publish(1, stream=StreamName.parse("user:auth0~7C1"))
        await client.until(b'"data":1}')
        await it.publish(2, stream=StreamName.parse("system:all"))
        await client.until(b'"data":2}')


async def test_head_has_headers_and_no_body() -> None:
    async with live() as it:
        answer = await it.ask("HEAD", "/api/v1/streams/run:42/events/stream")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        (["Last-Event-ID: x"], "", 400, "INVALID_CURSOR"),
        (["Last-Event-ID: 1-1", "Last-Event-ID: 1-2"], "", 400, "INVALID_CURSOR"),
        (["Last-Event-ID: " + "1" * 5_000], "", 400, "INVALID_CURSOR"),
        ([], "last_event_id=1-1&last_id=1-1", 400, "MALFORMED"),
        ([], "last_id=%00", 400, "INVALID_CURSOR"),
        ([], "format=xml", 400, "MALFORMED"),
        ([], "named=2", 400, "MALFORMED"),
        ([], "connection=a/b", 400, "MALFORMED"),
        ([], "connection=" + "a" * 65, 400, "MALFORMED"),
    ],
)
async def test_what_can_never_succeed_is_an_error_status(
    headers: list[str], query: str, status: int, code: str
) -> None:
    async with live() as it, it.follow(query, *headers) as client:
        assert await status_of(client) == status
        assert code.encode() in await client.until(b"}")


async def test_head_of_a_request_that_is_too_large_is_refused() -> None:
    async with live() as it, it.follow("", "Last-Event-ID: " + "1" * 70_000) as client:
        assert await status_of(client) in (400, 431)


async def test_finished_stream_that_the_header_has_read_is_a_204() -> None:
    async with live() as it:
        await it.publish(1)
        head = await it.log.close(RUN)
        async with it.follow("", f"Last-Event-ID: {head.id}") as client:
            assert await status_of(client) == 204
        async with it.follow(f"last_event_id={head.id}") as client:
            assert await status_of(client) == 200
            assert await closed_with(client) == CloseCode.ENDED
        await eventually(lambda: len(it.gateway.connections) == 0)


# -- refusing an EventSource -------------------------------------------------------------------------------


async def test_limit_is_told_to_an_event_source_as_a_refusal_it_comes_back_from() -> None:
    async with live(max_connections_per_user=1, connection_policy="refuse") as it, it.follow() as first:
        await first.until(b"event: stream.open")
        async with it.follow() as second:
            assert await status_of(second) == 200
            refused = await second.rest()
        plain = await it.ask("GET", "/api/v1/streams/run:42/events/stream")

    assert b"event: stream.refused" in refused
    assert int(refused.partition(b"retry: ")[2].split(b"\n")[0]) >= 10_000
    assert json.loads(refused.partition(b"data: ")[2].split(b"\n")[0])["code"] == CloseCode.LIMITED
    assert (plain.status_code, plain.json()["code"]) == (429, "RATE_LIMITED")
    assert int(plain.headers["retry-after"]) >= 10


async def test_whole_server_has_a_limit() -> None:
    async with live(max_connections=1) as it, it.follow() as first:
        await first.until(b"event: stream.open")
        async with it.follow(auth=token("bob", read=["run:*"])) as second:
            assert b"event: stream.refused" in await second.rest()


async def test_draining_server_sends_readers_away_and_takes_no_new_ones() -> None:
    async with live() as it, it.follow() as reader:
        await reader.until(b"event: stream.open")
        await it.gateway.drain(0)
        assert await closed_with(reader) == CloseCode.GOING_AWAY
        async with it.follow() as late:
            assert await status_of(late) == 200
            refused = await late.rest()
        ready = await it.ask("GET", "/readyz")

    assert json.loads(refused.partition(b"data: ")[2].split(b"\n")[0])["code"] == CloseCode.GOING_AWAY
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")


# -- limits of a user and an address -----------------------------------------------------------------------


async def test_oldest_connection_goes_and_is_told_to_stay_away() -> None:
    async with (
        live(max_connections_per_user=2) as it,
        it.follow("connection=a") as a,
        it.follow("connection=b") as b,
        it.follow("connection=c") as c,
    ):
        await c.until(b"event: stream.open")
        assert await closed_with(a) == CloseCode.REPLACED
        async with it.follow("connection=a") as again:
            assert await status_of(again) == 204
        plain = await it.ask("GET", "/api/v1/streams/run:42/events/stream?connection=a")
        await it.publish(1)
        for client in (b, c):
            await client.until(b'"data":1}')
        it.clock.ahead += BARRED_SECONDS + 1
        async with it.follow("connection=a") as later:
            await later.until(b"event: stream.open")

    assert (plain.status_code, plain.json()["code"]) == (409, "REPLACED")


async def test_connection_that_comes_back_takes_its_own_place() -> None:
    async with live(max_connections_per_user=1) as it, it.follow("connection=a") as old:
        await old.until(b"event: stream.open")
        async with it.follow("connection=a") as new:
            await new.until(b"event: stream.open")
            assert await closed_with(old) == CloseCode.REPLACED
            await eventually(lambda: len(it.gateway.connections) == 1)


async def test_slot_is_free_again_when_the_client_has_left() -> None:
    async with live(max_connections_per_user=1, connection_policy="refuse") as it:
        for _ in range(5):
            async with it.follow() as client:
                await client.until(b"event: stream.open")
            await eventually(lambda: len(it.gateway.connections) == 0)


async def test_address_counts_behind_trusted_proxies_only() -> None:
    limits: dict[str, Any] = {"max_connections_per_address": 1, "max_connections_per_user": 0}
    async with (
        live(trusted_proxies=("127.0.0.1", "10.0.0.0/8"), **limits) as it,
        it.follow("", "X-Forwarded-For: 1.2.3.4, 9.9.9.9, 10.0.0.1") as first,
    ):
        await first.until(b"event: stream.open")
        for spoof in ("5.6.7.8, 9.9.9.9", "9.9.9.9, 10.1.1.1", "127.0.0.1, 9.9.9.9"):
            async with it.follow("", f"X-Forwarded-For: {spoof}") as same:
                assert b"event: stream.refused" in await same.rest()
        async with it.follow("", "X-Forwarded-For: 9.9.9.8") as other:
            await other.until(b"event: stream.open")
    async with (
        live(**limits) as it,
        it.follow("", "X-Forwarded-For: 9.9.9.9") as one,
        it.follow("", "X-Forwarded-For: 9.9.9.9") as two,
    ):
        await one.until(b"event: stream.open")
        await two.until(b"event: stream.open")


async def test_ipv6_counts_by_its_network() -> None:
    limits: dict[str, Any] = {"max_connections_per_address": 1, "max_connections_per_user": 0}
    async with (
        live(trusted_proxies=("127.0.0.1",), **limits) as it,
        it.follow("", "X-Forwarded-For: 2001:db8:1:2::1") as first,
    ):
        await first.until(b"event: stream.open")
        async with it.follow("", "X-Forwarded-For: [2001:db8:1:2:ffff::9]:443") as same:
            assert b"event: stream.refused" in await same.rest()
        async with it.follow("", "X-Forwarded-For: 2001:db8:1:3::1") as other:
            await other.until(b"event: stream.open")


# -- short tokens ------------------------------------------------------------------------------------------


async def test_short_token_opens_a_connection_and_again_61_seconds_after_minting() -> None:
    async with live() as it:
        await it.publish(1)
        short = await it.mint()
        async with it.follow(f"sse_token={short}", auth=None) as client:
            await client.until(b'"data":1}')
        it.clock.ahead += 61
        async with it.follow(f"sse_token={short}", auth=None) as client:
            await client.until(b'"data":1}')


async def test_first_use_after_60_seconds_is_a_401() -> None:
    async with live() as it:
        short = await it.mint()
        it.clock.ahead += 61
        async with it.follow(f"sse_token={short}", auth=None) as client:
            assert await status_of(client) == 401


async def test_short_token_is_kept_five_minutes_after_its_connection_and_while_it_lives() -> None:
    async with live() as it:
        short = await it.mint()
        async with it.follow(f"sse_token={short}", auth=None) as client:
            await client.until(b"event: stream.open")
            for _ in range(4):
                it.clock.ahead += 200
                await it.gateway.connections.check()
        await eventually(lambda: len(it.gateway.connections) == 0)
        it.clock.ahead += 299
        async with it.follow(f"sse_token={short}", auth=None) as client:
            await client.until(b"event: stream.open")
        await eventually(lambda: len(it.gateway.connections) == 0)
        it.clock.ahead += 301
        async with it.follow(f"sse_token={short}", auth=None) as client:
            assert await status_of(client) == 401


async def test_replay_takes_the_place_of_the_older_connection() -> None:
    async with live() as it:
        short = await it.mint()
        async with it.follow(f"sse_token={short}", auth=None) as older:
            await older.until(b"event: stream.open")
            async with it.follow(f"sse_token={short}", auth=None) as newer:
                await newer.until(b"event: stream.open")
                assert await closed_with(older) == CloseCode.REPLACED
                await it.publish(1)
                await newer.until(b'"data":1}')


async def test_short_token_never_outlives_the_token_behind_it() -> None:
    async with live(jwt_leeway_seconds=0) as it:
        short = await it.mint(token("root", admin=True, exp=int(time.time()) + 100))
        async with it.follow(f"sse_token={short}", auth=None) as client:
            await client.until(b"event: stream.open")
            it.clock.ahead += 101
            assert await closed_with(client) == CloseCode.TOKEN_EXPIRED
        async with it.follow(f"sse_token={short}", auth=None) as client:
            assert await status_of(client) == 401


async def test_short_token_has_the_rights_of_its_owner_and_no_more() -> None:
    async with live() as it:
        short = await it.mint(token("alice"))
        async with it.follow(f"sse_token={short}", auth=None) as client:
            assert await status_of(client) == 403
        async with it.follow(f"sse_token={short}", auth=None, stream="user:alice") as client:
            await client.until(b"event: stream.open")


async def test_short_token_is_no_token_elsewhere() -> None:
    async with live() as it:
        short = await it.mint()
        answers = [
            await it.ask("GET", "/api/v1/streams/run:42/events", short),
            await it.ask("GET", f"/api/v1/streams/run:42/events?sse_token={short}", None),
            await it.ask("POST", f"/api/v1/streams/run:42/events?sse_token={short}", None, json={"type": "a"}),
            await it.ask("POST", f"/api/v1/auth/sse-token?sse_token={short}", None),
            await it.ask("GET", "/api/v1/events/poll?timeout=0&sse_token=" + "st1_" + "A" * 43, None),
            await it.ask("GET", f"/api/v1/events/poll?timeout=0&sse_token={short}x", None),
        ]
        poll = await it.ask("GET", f"/api/v1/events/poll?timeout=0&sse_token={short}", None)

    assert [each.status_code for each in answers] == [401] * 6
    assert poll.status_code == 200


# -- what ends a live connection ---------------------------------------------------------------------------


async def test_expired_token_ends_the_connection() -> None:
    async with (
        live(jwt_leeway_seconds=0) as it,
        it.follow(auth=token("root", admin=True, exp=int(time.time()) + 100)) as client,
    ):
        await client.until(b"event: stream.open")
        it.clock.ahead += 101
        assert await closed_with(client) == CloseCode.TOKEN_EXPIRED


async def test_revoked_token_ends_the_connection_and_its_short_token() -> None:
    async with live() as it:
        alice = token("alice", read=["run:*"])
        short = await it.mint(alice)
        async with (
            it.follow(f"sse_token={short}", auth=None) as one,
            it.follow(auth=alice) as two,
            it.follow() as other,
        ):
            for client in (one, two, other):
                await client.until(b"event: stream.open")
            assert (await it.ask("POST", "/api/v1/auth/revoke", alice)).status_code == 204
            assert await closed_with(one) == CloseCode.UNAUTHORIZED
            assert await closed_with(two) == CloseCode.UNAUTHORIZED
            await it.publish(1)
            await other.until(b'"data":1}')
        async with it.follow(f"sse_token={short}", auth=None) as again:
            assert await status_of(again) == 401


async def test_lost_permission_ends_the_connection() -> None:
    class Fickle:
        allowed = True

        async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
            return self.allowed

    fickle = Fickle()
    async with live(create={"authorizer": fickle}) as it, it.follow() as client:
        await client.until(b"event: stream.open")
        fickle.allowed = False
        assert await closed_with(client) == CloseCode.FORBIDDEN
        await eventually(lambda: len(it.gateway.connections) == 0)


async def test_authorizer_that_fails_ends_no_connection() -> None:
    class Failing:
        calls = 0

        async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("the database is away")
            return True

    failing = Failing()
    async with live(create={"authorizer": failing}) as it, it.follow() as client:
        await client.until(b"event: stream.open")
        await eventually(lambda: failing.calls > 3)
        await it.publish(1)
        await client.until(b'"data":1}')


async def test_websocket_to_a_foreign_host_is_refused() -> None:
    async with live(allowed_hosts=("test",)) as it:
        for host, status in (("test", b" 101 "), ("evil.example", b" 403 ")):
            async with it.serving.client() as client:
                head = [
                    f"GET /api/v1/streams/run:42/ws HTTP/1.1\r\nHost: {host}",
                    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
                    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {ROOT}",
                ]
                await client.send(("\r\n".join(head) + "\r\n\r\n").encode())
                assert status in await client.until(b"\r\n\r\n")
