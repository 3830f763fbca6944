"""What holds live connections to their limits and rights does not depend on the slowest answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import HTTPConnection

from tailrace.codes import CloseCode
from tailrace.core.names import StreamName
from tailrace.errors import CorruptRecord
from tailrace.eventlog.leases import Admission, MemoryLeases, Seat
from tailrace.web.principal import Action, Principal
from tests.support.gateway import api
from tests.support.tokens import token
from tests.support.wait import eventually
from tests.web.test_live import closed_with, live, status_of


class Hanging:
    """Answers about one user no more from some time on, and refuses another."""

    def __init__(self) -> None:
        self.hangs = self.refuses = False
        self.hung = 0

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        if self.hangs and principal.sub == "slow":
            self.hung += 1
            await asyncio.Event().wait()
        return not (self.refuses and principal.sub == "quick")


async def test_an_authorizer_that_hangs_for_one_user_keeps_no_other_token_alive() -> None:
    hanging = Hanging()
    async with (
        live(create={"authorizer": hanging}, jwt_leeway_seconds=0) as it,
        it.follow(auth=token("slow", exp=int(time.time()) + 10_000)) as slow,
        it.follow(auth=token("quick", exp=int(time.time()) + 100)) as quick,
    ):
        await slow.until(b"event: stream.open")
        await quick.until(b"event: stream.open")
        hanging.hangs = True
        await eventually(lambda: hanging.hung > 0)

        it.clock.ahead += 101

        assert await closed_with(quick) == CloseCode.TOKEN_EXPIRED
        await it.publish(1)
        await slow.until(b'"data":1}')


async def test_an_authorizer_that_hangs_for_one_user_takes_back_anothers_permission() -> None:
    hanging = Hanging()
    async with (
        live(create={"authorizer": hanging}) as it,
        it.follow(auth=token("slow")) as slow,
        it.follow(auth=token("quick")) as quick,
    ):
        await slow.until(b"event: stream.open")
        await quick.until(b"event: stream.open")
        hanging.hangs = True
        await eventually(lambda: hanging.hung > 0)

        hanging.refuses = True

        assert await closed_with(quick) == CloseCode.FORBIDDEN


class Pausing(MemoryLeases):
    """A store that is not asked in no time."""

    async def admit(self, seat: Seat, *, limit: int, evict: bool) -> Admission:
        await asyncio.sleep(0)
        return await super().admit(seat, limit=limit, evict=evict)


async def test_the_limit_of_a_server_holds_when_connections_race() -> None:
    async with api(create={"leases": Pausing()}, max_connections=3, max_connections_per_user=50) as it:
        poll = "/api/v1/events/poll?stream=run:1&cursor=0&timeout=1"
        answers = await asyncio.gather(*(it.call("GET", poll) for _ in range(20)))

    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 17


async def test_a_head_request_takes_nobodys_place() -> None:
    async with live(max_connections_per_user=1) as it, it.follow() as reader:
        await reader.until(b"event: stream.open")
        short = await it.mint()
        async with it.follow(f"sse_token={short}", auth=None, stream="run:7") as other:
            await other.until(b"event: stream.open")
            assert await closed_with(reader) == CloseCode.REPLACED

            path = "/api/v1/streams/run:7/events/stream"
            assert (await it.ask("HEAD", path)).status_code == 200
            assert (await it.ask("HEAD", f"{path}?sse_token={short}", None)).status_code == 401

            await it.publish(1, stream=StreamName.parse("run:7"))
            await other.until(b'"data":1}')
            assert len(it.gateway.connections) == 1


async def test_a_defect_is_told_to_an_event_source_as_a_refusal_it_comes_back_from() -> None:
    class Broken:
        async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
            raise CorruptRecord("what only an operator should see")

    async with live(create={"authorizer": Broken()}) as it:
        async with it.follow() as client:
            assert await status_of(client) == 200
            refused = await client.rest()
        plain = await it.ask("GET", "/api/v1/streams/run:42/events/stream")

    assert b"event: stream.refused" in refused
    assert b"operator" not in refused
    assert (plain.status_code, plain.json()["code"]) == (500, "CORRUPT_RECORD")


async def test_no_answer_to_an_event_source_is_cached() -> None:
    async with live() as it:
        await it.publish(1)
        head = await it.log.close(StreamName.parse("run:42"))
        finished = await it.ask("GET", "/api/v1/streams/run:42/events/stream", headers={"Last-Event-ID": str(head.id)})

    assert (finished.status_code, finished.headers.get("cache-control")) == (204, "no-store")


async def test_a_short_token_says_how_long_it_is_good() -> None:
    async with api(jwt_leeway_seconds=0) as it:
        answer = await it.call("POST", "/api/v1/auth/sse-token", auth=token("alice", exp=int(time.time()) + 10))

    assert 0 < answer.json()["expires_in"] <= 10


async def test_health_answers_a_head_request() -> None:
    async with live() as it:
        await eventually(lambda: it.gateway.probe.healthy)
        answers = [await it.ask("HEAD", path, None) for path in ("/healthz", "/readyz")]

    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"")] * 2


async def test_every_end_by_the_server_is_counted() -> None:
    async with live() as it:

        def ended(reason: str) -> Any:
            labels = {"transport": "sse", "reason": reason}
            return it.gateway.metrics.registry.get_sample_value("tailrace_connections_closed_total", labels)

        async with it.follow() as client:
            await client.until(b"event: stream.open")
            await it.publish(1)
            await it.log.close(StreamName.parse("run:42"))
            assert await closed_with(client) == CloseCode.ENDED
        async with it.follow(stream="run:7") as client:
            await client.until(b"event: stream.open")
            await it.gateway.drain(0)
            assert await closed_with(client) == CloseCode.GOING_AWAY

        await eventually(lambda: (ended("ENDED"), ended("GOING_AWAY")) == (1.0, 1.0))


async def test_a_refused_request_leaves_a_short_token_with_the_connection_that_has_it() -> None:
    async with live() as it:
        short = await it.mint(token("alice", read=["run:42"]))
        async with it.follow(f"sse_token={short}", auth=None) as reader:
            await reader.until(b"event: stream.open")
            stream, poll = "/api/v1/streams/run:{}/events/stream", "/api/v1/events/poll?stream=run:7&"
            for path, status in ((stream.format(42) + "?last_id=x&", 400), (stream.format(7) + "?", 403), (poll, 403)):
                assert (await it.ask("GET", f"{path}sse_token={short}", None)).status_code == status
            await it.gateway.connections.check()
            await it.publish(1)
            await reader.until(b'"data":1}')


async def test_a_short_token_of_an_application_that_is_minted_after_a_revocation_is_good() -> None:
    async def who(connection: HTTPConnection) -> Principal | None:
        return Principal(sub="alice") if "sse_token" not in connection.query_params else None

    async with api(create={"authenticate": who}) as it:
        await it.gateway.access.revocations.revoke(sub="alice")
        short = (await it.call("POST", "/api/v1/auth/sse-token", auth=None)).json()["sse_token"]
        answer = await it.call("GET", f"/api/v1/events/poll?timeout=0&sse_token={short}", auth=None)
        await it.gateway.access.revocations.revoke(sub="alice")
        again = await it.call("GET", f"/api/v1/events/poll?timeout=0&sse_token={short}", auth=None)

    assert (answer.status_code, again.status_code) == (200, 401)
