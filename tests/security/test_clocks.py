"""Clocks that jump: the issuer's and the gateway's. Tokens are judged by them within the leeway; nothing else is."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

import tailrace
from tailrace.app import create_app
from tailrace.codes import CloseCode
from tailrace.eventlog.leases import MemoryLeases
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.auth import Revocations
from tailrace.web.gateway import Gateway
from tailrace.web.principal import Principal
from tests.support.gateway import api, settings_of
from tests.support.serving import Serving, serving
from tests.support.tokens import token

MINUTE = 60
PATH = "/api/v1/streams/run:42/events"
JUMPS = [-60 * MINUTE, -5 * MINUTE, 5 * MINUTE, 60 * MINUTE]
WALL = {
    "cli/dev.py": "whether a token in a file is still good",
    "cli/options.py": "times that a user gives",
    "cli/run/session.py": "times in events",
    "cli/token.py": "times in tokens",
    "client/credentials.py": "whether a token is still good",
    "eventlog/checks.py": "the difference between our clock and that of Redis",
    "eventlog/leases.py": "revocations, which are compared with times in tokens",
    "eventlog/memory/log.py": "times in records",
    "features/runs/service.py": "times in rows",
    "features/runs/workers.py": "times in rows",
    "features/workflow/bridge.py": "times in events",
    "testing/memory.py": "times in records",
    "web/auth.py": "whether a token is still good",
    "web/tokens.py": "whether a token is good",
}
"""Who looks at the wall clock, and what for: never to know how much time went by."""


def looks_at_the_wall(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"):
                yield name


def test_time_that_went_by_is_never_measured_by_the_wall_clock() -> None:
    root = Path(tailrace.__file__).parent
    files = {path.relative_to(root).as_posix(): ast.parse(path.read_text()) for path in root.rglob("*.py")}

    assert {name for name, tree in files.items() if any(looks_at_the_wall(tree))} == set(WALL)


def issued(skew: float, *, minutes: float = 10) -> str:
    """A token of alice that an issuer makes now, whose clock is wrong by `skew` seconds."""
    now = int(time.time() + skew)
    return token(read=["run:*"], iat=now, nbf=now, exp=now + int(minutes * MINUTE))


@pytest.mark.parametrize("leeway", [0, 60])
@pytest.mark.parametrize("skew", [*JUMPS, -70, -50, 50, 70])
async def test_issuers_clock_may_be_ahead_by_the_leeway_and_behind_by_a_tokens_life(skew: int, leeway: int) -> None:
    async with api(jwt_leeway_seconds=leeway) as it:
        answer = await it.call("GET", PATH, auth=issued(skew))

    early, late = skew > leeway, skew <= -10 * MINUTE - leeway
    if not early and not late:
        assert answer.status_code == 200, answer.text
        return
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (401, "UNAUTHORIZED")
    assert problem["reason"] == ("early" if early else "expired")
    assert problem["detail"] == ("the token is not valid yet" if early else "the token has expired")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_leeway_is_a_minute_at_most() -> None:
    with pytest.raises(ValueError, match="jwt_leeway_seconds"):
        settings_of(jwt_leeway_seconds=61)


class Clock:
    """Unix time of a gateway, which may jump."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@asynccontextmanager
async def jumping(clock: Clock) -> AsyncIterator[tuple[Serving, Gateway]]:
    """A gateway with one connection for each user, whose every look at the wall clock is at this one."""
    given = settings_of(
        max_connections_per_user=1, connection_policy="refuse", heartbeat_seconds=0.2, recheck_seconds=0.05
    )
    log = MemoryLog(kinds=given.stream_kinds(), clock=clock)
    app = create_app(given, log=log, leases=MemoryLeases(wall=clock))
    gateway: Gateway = app.state.gateway
    assert gateway.access._verifier is not None
    gateway.access._clock = gateway.access._verifier._clock = clock
    async with serving(app, drain=lambda: gateway.drain(0)) as served:
        yield served, gateway
    await log.aclose()


@pytest.mark.parametrize("jump", JUMPS)
async def test_jump_of_the_gateways_clock_frees_no_seat_and_stops_no_heartbeat(jump: int) -> None:
    clock = Clock()
    day = f"Authorization: Bearer {issued(0, minutes=24 * 60)}"
    poll = "/api/v1/events/poll?stream=run:42&timeout=0"
    async with (
        jumping(clock) as (served, gateway),
        served.client() as reader,
        httpx.AsyncClient(base_url=served.url, trust_env=False, verify=False, timeout=60) as http,
    ):
        await reader.get(f"{PATH}/stream", day, "Accept: text/event-stream")
        await reader.until(b"event: stream.open", 60)

        clock.ahead = jump
        await gateway.connections.check()

        reader.received.clear()
        for _ in range(3):
            await reader.until(b":\n", 60)  # heartbeats go on
        name, _, value = day.partition(": ")
        assert (await http.get(poll, headers={name: value})).status_code == 429
        assert len(gateway.connections) == 1
        answer = await http.get(PATH, headers={"Authorization": f"Bearer {issued(0)}"})
        reasons = {-60 * MINUTE: "early", -5 * MINUTE: "early", 60 * MINUTE: "expired"}
        assert answer.json().get("reason") == reasons.get(jump), answer.text


@pytest.mark.parametrize("jump", JUMPS)
async def test_open_connection_ends_when_the_clock_says_that_its_token_is_over(jump: int) -> None:
    clock = Clock()
    async with jumping(clock) as (served, gateway), served.client() as reader:
        await reader.get(f"{PATH}/stream", f"Authorization: Bearer {issued(0)}", "Accept: text/event-stream")
        await reader.until(b"event: stream.open", 60)

        clock.ahead = jump
        await gateway.connections.check()

        reader.received.clear()
        if jump < 10 * MINUTE:
            for _ in range(3):
                await reader.until(b":\n", 60)
            assert len(gateway.connections) == 1
            return
        await reader.until(b"event: stream.closed\ndata: ", 60)
        closed = json.loads((await reader.until(b"\n\n", 60)).strip())
        assert closed["code"] == CloseCode.TOKEN_EXPIRED


@pytest.mark.parametrize("jump", [*JUMPS, -20])
async def test_revocation_is_known_everywhere_though_the_stores_clock_jumps(jump: int) -> None:
    """As after a fail-over to a server whose clock is another."""
    clock = Clock()
    store = MemoryLeases(wall=clock)
    revocations = Revocations(store)
    await revocations.revoke(sub="bob")

    clock.ahead = jump
    await store.revoke("sub:alice")  # by another gateway
    await revocations.refresh()
    await store.revoke("jti:7")
    await revocations.refresh()

    assert revocations.covers(Principal(sub="alice"))
    assert revocations.covers(Principal(sub="bob"))
    assert revocations.covers(Principal(sub="carol", token_id="7"))
    assert not revocations.covers(Principal(sub="dave"))
