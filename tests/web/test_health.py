"""Health follows a real event through log and hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tailrace.app import create_app
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.observe import Metrics
from tailrace.web.gateway import Gateway
from tailrace.web.health import Probe
from tests.support.gateway import Api, api, settings_of
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.tokens import token
from tests.support.wait import eventually


async def readiness(it: Api, query: str = "") -> tuple[int, dict[str, Any]]:
    answer = await it.call("GET", f"/readyz{query}", auth=None)
    return answer.status_code, answer.json()


async def is_ready(it: Api) -> bool:
    return (await readiness(it))[0] == 200


@asynccontextmanager
async def on_redis(server: RedisServer, *, probing: str | None = None, **settings: Any) -> AsyncIterator[Api]:
    """The application over a real log that it opens itself; its probe's stream may be given."""
    app = create_app(settings_of(redis_url=server.url, **settings))
    gateway: Gateway = app.state.gateway
    if probing is not None:
        gateway.probe.stream = StreamName.parse(probing)
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 5_000))
    async with gateway.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Api(app, gateway.log, client)


async def test_it_is_ready_after_the_first_round_trip() -> None:
    async with api() as it:
        assert (await it.call("GET", "/healthz", auth=None)).json() == {"status": "ok"}
        await eventually(lambda: is_ready(it))
        health = (await it.call("GET", "/api/v1/events/health", auth=None)).json()

    assert health["status"] == "ready"
    assert 0 < health["probe_seconds"] < 1
    assert health["connections"] == 0


async def test_readiness_is_red_and_green_within_five_seconds_of_the_log(start_redis: StartRedis) -> None:
    server = await start_redis({"appendonly": "yes"})
    async with on_redis(server) as it:
        await eventually(lambda: is_ready(it))

        await server.kill()
        begun = time.monotonic()
        await eventually(lambda: not_ready(it), timeout=6)
        red = time.monotonic() - begun
        status, body = await readiness(it)
        degraded, _ = await readiness(it, "?degraded=ok")
        alive = await it.call("GET", "/healthz", auth=None)
        publish = await it.call("POST", "/api/v1/streams/run:1/events", json={"type": "a"})
        history = await it.call("GET", "/api/v1/streams/run:1/events")
        minting = await it.call("POST", "/api/v1/auth/sse-token")

        await server.start()
        begun = time.monotonic()
        await eventually(lambda: is_ready(it), timeout=6)
        green = time.monotonic() - begun
        again = await it.call("POST", "/api/v1/streams/run:1/events", json={"type": "a"})

    assert red < 5
    assert green < 5
    assert (status, body["status"]) == (503, "degraded")
    assert (degraded, alive.status_code) == (200, 200)
    for answer in (publish, history, minting):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    assert again.status_code == 201


def test_gateways_that_start_again_and_again_probe_a_few_streams() -> None:
    metrics = Metrics()

    assert len({Probe(metrics).stream for _ in range(2_000)}) <= 16


async def test_two_gateways_that_probe_the_same_stream_are_both_ready(redis62: RedisServer, key_prefix: str) -> None:
    same: dict[str, Any] = {"probing": "probe:00", "key_prefix": key_prefix}
    async with on_redis(redis62, **same) as one, on_redis(redis62, **same) as other:
        await eventually(lambda: is_ready(one))
        await eventually(lambda: is_ready(other))


async def not_ready(it: Api) -> bool:
    return not await is_ready(it)


async def test_frozen_log_turns_readiness_red(start_redis: StartRedis) -> None:
    server = await start_redis()
    async with on_redis(server) as it:
        await eventually(lambda: is_ready(it))
        server.pause()
        try:
            await eventually(lambda: not_ready(it), timeout=5)
        finally:
            server.resume()
        await eventually(lambda: is_ready(it), timeout=5)


async def test_whole_api_works_on_redis(redis70: RedisServer, key_prefix: str) -> None:
    async with on_redis(redis70, key_prefix=key_prefix) as it:
        ids = await it.publish("run:1", {"type": "a", "data": 1}, {"type": "b", "data": 2})
        page = (await it.call("GET", f"/api/v1/streams/run:1/events?since_id={ids[0]}")).json()
        info = (await it.call("GET", "/api/v1/streams/run:1")).json()
        closed = (await it.call("POST", "/api/v1/streams/run:1/close")).json()
        short = (await it.call("POST", "/api/v1/auth/sse-token")).json()["sse_token"]
        poll = await it.call("GET", f"/api/v1/events/poll?stream=run:1&cursor=0&timeout=0&sse_token={short}", auth=None)
        deleted = await it.call("DELETE", "/api/v1/streams/run:1")
        unknown = await it.call("GET", "/api/v1/streams/run:2")

    assert [each["data"] for each in page["events"]] == [2]
    assert (info["length"], info["last_id"], closed["state"]) == (2, ids[1], "closed")
    assert [each["data"] for each in poll.json()["events"]] == [1, 2]
    assert (deleted.status_code, unknown.status_code) == (204, 404)


async def test_short_token_is_nowhere_in_redis(redis70: RedisServer, key_prefix: str) -> None:
    async with on_redis(redis70, key_prefix=key_prefix) as it:
        short = (await it.call("POST", "/api/v1/auth/sse-token")).json()["sse_token"]
        keys = await redis70.cli("KEYS", f"{key_prefix}short:*")
        values = [await redis70.cli("GET", key) for key in keys]

    assert len(keys) == 1
    assert short not in str([keys, values])


class Broken(MemoryLog):
    """A log whose tail has a defect."""

    def open_tail(self, listener: Any) -> Any:
        class Tail:
            watching = 0

            async def run(self) -> None:
                raise RuntimeError("a defect")

            async def watch(self, stream: Any) -> Any:
                await asyncio.Event().wait()

        return Tail()


async def test_defect_of_a_worker_is_told_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    crashed = asyncio.Event()
    app = create_app(settings_of(), log=Broken())
    gateway: Gateway = app.state.gateway
    gateway.on_crash = crashed.set
    transport = httpx.ASGITransport(app=app)
    async with gateway.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        async with asyncio.timeout(5):
            await crashed.wait()
        alive, ready = await client.get("/healthz"), await client.get("/readyz?degraded=ok")

    assert (alive.status_code, alive.json()) == (503, {"status": "failed", "worker": "hub"})
    assert (ready.status_code, ready.json()["worker"]) == (503, "hub")
    assert any(record.levelname == "CRITICAL" and getattr(record, "worker", "") == "hub" for record in caplog.records)


async def test_before_the_start_everything_but_liveness_is_a_503() -> None:
    app = create_app(settings_of(), log=MemoryLog())
    transport = httpx.ASGITransport(app=app)
    headers = {"Authorization": f"Bearer {token('root', admin=True)}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        alive, ready = await client.get("/healthz"), await client.get("/readyz")
        page = await client.get("/api/v1/streams/run:1/events")

    assert (alive.status_code, ready.status_code, page.status_code) == (200, 503, 503)
    assert page.json()["code"] == "LOG_UNAVAILABLE"


async def test_metrics_count_what_happened_with_our_own_words_as_labels() -> None:
    async with api() as it:
        await it.publish("run:1", {"type": "a"}, {"type": "b"})
        await it.publish("strange-kind:1", {"type": "a"})
        await it.call("GET", "/api/v1/streams/run:1/events", auth=None)
        await it.call("GET", "/no/such/path/canary")
        await it.call("PROPFIND", "/healthz")
        text = (await it.call("GET", "/metrics", auth=None)).text

    assert 'tailrace_published_events_total{kind="run",outcome="stored"} 2.0' in text
    assert 'tailrace_published_events_total{kind="other",outcome="stored"} 1.0' in text
    assert 'tailrace_auth_failures_total{reason="missing"} 1.0' in text
    assert 'route="/streams/{stream}/events",status="201"' in text
    assert "canary" not in text
    assert "PROPFIND" not in text


async def test_application_starts_without_its_log_and_becomes_ready_when_it_comes(start_redis: StartRedis) -> None:
    server = await start_redis()
    await server.stop()
    async with on_redis(server) as it:
        alive = await it.call("GET", "/healthz", auth=None)
        status, body = await readiness(it)
        publish = await it.call("POST", "/api/v1/streams/run:1/events", json={"type": "a"})
        await server.start()
        await eventually(lambda: is_ready(it), timeout=6)

    assert alive.status_code == 200
    assert (status, body["status"]) == (503, "starting")
    assert publish.status_code == 503
