"""A client that is gone without a word: no FIN, no reset. What it held is given back all the same."""

from __future__ import annotations

import asyncio

import httpx
import psutil
import pytest

from tailrace.app import create_app
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.gateway import Gateway
from tests.support.gateway import settings_of
from tests.support.serving import serving
from tests.support.tokens import token
from tests.support.vanishing import faraway
from tests.support.wait import eventually
from tests.support.ws_raw import handshake

STREAM = "/api/v1/streams/run:1"
BEARER = {"Authorization": f"Bearer {token(read=['run:*'])}"}
AUTH = f"Authorization: {BEARER['Authorization']}"


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: test\r\n{AUTH}\r\n\r\n".encode()


REQUESTS = [
    (get(f"{STREAM}/events/stream"), "stream.open"),
    (get("/api/v1/events/stream?stream=run:1&stream=run:2"), "stream.open"),
    (handshake(f"{STREAM}/ws", AUTH), '"open"'),
    (handshake("/api/v1/ws", AUTH), '"open"'),
    # Nothing is sent while it waits: only its own time ends it.
    (get("/api/v1/events/poll?stream=run:1&cursor=0&timeout=10"), ""),
]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_seats_and_descriptors_of_a_vanished_client_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a heartbeat or a poll's time, which nobody acknowledges, and the time that the kernel waits for that."""
    monkeypatch.setattr("tailrace.transports.rawhttp.USER_TIMEOUT_MS", 2_000)
    given = settings_of(
        heartbeat_seconds=1.0, max_connections_per_user=len(REQUESTS), connection_policy="refuse", recheck_seconds=0.5
    )
    log = MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=log)
    gateway: Gateway = app.state.gateway
    poll = "/api/v1/events/poll?stream=run:1&timeout=0"
    async with faraway() as far, serving(app, drain=lambda: gateway.drain(0), host=far.host) as served:
        before = await asyncio.to_thread(psutil.Process().num_fds)
        await far.open(served.port, REQUESTS)
        await eventually(lambda: len(gateway.connections) == len(REQUESTS), 8)
        url = f"http://{far.host}:{served.port}{poll}"
        async with httpx.AsyncClient(headers=BEARER, timeout=60, trust_env=False, verify=False) as http:
            assert (await http.get(url)).status_code == 429
        assert len(served.server.server_state.connections) >= len(REQUESTS)

        await far.vanish()

        await eventually(lambda: not served.server.server_state.connections and len(gateway.connections) == 0, 90)
        assert far.running
        async with httpx.AsyncClient(headers=BEARER, timeout=60, trust_env=False, verify=False) as http:
            assert (await http.get(url)).status_code == 200
        await eventually(lambda: psutil.Process().num_fds() <= before, 60)
    await log.aclose()
