"""Who gets a WebSocket: decided before it is accepted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tailrace.codes import CloseCode
from tailrace.web.principal import Principal
from tests.support.tokens import token
from tests.support.ws import Gate, Wire, gate
from tests.support.ws_raw import handshake

JWT = token(read=["run:*"])


@pytest.fixture
async def running() -> AsyncIterator[Gate]:
    async with gate(cookie_name="session", cors_origins="https://app.example") as made:
        yield made


async def refused(running: Gate, path: str = "/ws", **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and problem of a refused handshake."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(running.address(path), additional_headers=headers):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body or b"{}")


async def told(running: Gate, path: str = "/ws", **headers: str) -> tuple[dict[str, Any], int]:
    """What a page is told that may not connect, and the close code."""
    async with connect(running.address(path), additional_headers=headers) as socket:
        wire = Wire(socket)
        return await wire.get(), (await wire.closed())[0]


def own(running: Gate) -> str:
    return f"http://127.0.0.1:{running.port}"


@pytest.mark.parametrize("path", ["/ws", "/streams/run:1/ws"])
async def test_without_a_token_there_is_no_connection(running: Gate, path: str) -> None:
    status, problem = await refused(running, path)

    assert (status, problem["code"]) == (401, "UNAUTHORIZED")


async def test_a_stream_that_may_not_be_read_is_forbidden(running: Gate) -> None:
    status, problem = await refused(running, "/streams/secret:1/ws", Authorization=f"Bearer {JWT}")

    assert (status, problem["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/streams/run:1/ws?last_id=garbage", "INVALID_CURSOR"),
        ("/streams/run:1/ws?last_id=" + "1" * 5_000, "INVALID_CURSOR"),
        ("/streams/run:1/ws?format=xml", "MALFORMED"),
        ("/streams/RUN:1/ws", "INVALID_STREAM"),
        ("/streams/run:%0d%0a/ws", "INVALID_STREAM"),
        ("/ws?sse_token=x&sse_token=y", "MALFORMED"),
    ],
)
async def test_a_wrong_request_is_a_400(running: Gate, path: str, code: str) -> None:
    headers = {} if "sse_token" in path else {"Authorization": f"Bearer {JWT}"}

    status, problem = await refused(running, path, **headers)

    assert (status, problem["code"]) == (400, code)


async def test_a_page_is_told_by_a_close_code_to_stay_away(running: Gate) -> None:
    message, code = await told(running, Origin=own(running), Authorization="Bearer x.y.z")

    assert (message["control"], message["code"]) == ("refused", CloseCode.UNAUTHORIZED)
    assert code == CloseCode.UNAUTHORIZED


async def test_a_page_is_told_when_to_come_back(running: Gate) -> None:
    running.gateway.draining = True

    message, code = await told(running, Origin=own(running), Authorization=f"Bearer {JWT}")

    assert code == message["code"] == CloseCode.GOING_AWAY
    assert message["retry_after"] >= 1.0


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://app.example.evil.com"]
)
@pytest.mark.parametrize("proof", ["Cookie", "Authorization"])
async def test_a_page_of_a_foreign_origin_gets_no_connection(running: Gate, origin: str, proof: str) -> None:
    value = f"session={JWT}" if proof == "Cookie" else f"Bearer {JWT}"

    status, problem = await refused(running, Origin=origin, **{proof: value})

    assert (status, problem["code"]) == (403, "FORBIDDEN")


async def test_a_cookie_counts_for_pages_of_our_own_only(running: Gate) -> None:
    async with running.wire(jwt=JWT, headers={"Origin": "https://app.example"}):
        pass  # a listed origin may connect with a token of its own

    assert (await refused(running, Origin="https://app.example", Cookie=f"session={JWT}"))[0] == 403
    assert (await refused(running, Cookie=f"session={JWT}"))[0] == 403
    cookie = {"Origin": own(running), "Cookie": f"session={JWT}", "Authorization": ""}
    async with running.wire(headers=cookie) as wire:
        assert "streams" in await wire.ask("subscribe", stream="run:1")


async def test_a_token_in_a_subprotocol_is_taken_and_never_echoed(running: Gate) -> None:
    offered = ["tailrace.v1", f"tailrace.bearer.{JWT}"]
    async with running.wire(subprotocols=offered, headers={"Authorization": ""}) as wire:
        assert wire.socket.subprotocol == "tailrace.v1"
        assert "streams" in await wire.ask("subscribe", stream="run:1")


async def test_two_tokens_are_refused(running: Gate) -> None:
    async with running.server.client() as client:
        lines = (f"Authorization: Bearer {JWT}", f"Sec-WebSocket-Protocol: tailrace.v1, tailrace.bearer.{JWT}")
        await client.send(handshake("/api/v1/ws", *lines))

        assert (await client.until(b"\r\n")).split()[1] == b"400"


async def test_a_short_token_of_the_url_is_in_no_log(running: Gate, caplog: pytest.LogCaptureFixture) -> None:
    identity = await running.gateway.access.renew(_principal(), JWT)
    short = await running.gateway.access.mint(identity)
    caplog.set_level(logging.DEBUG)

    async with running.wire(f"/ws?sse_token={short}", headers={"Authorization": ""}) as wire:
        await wire.ask("ping")
    await refused(running, f"/ws?sse_token={short[:-1]}x")
    await asyncio.sleep(0)

    ours = [record for record in caplog.records if not record.name.startswith("websockets.client")]
    assert any("WebSocket" in record.getMessage() for record in ours)
    assert not [line for record in ours if short[:20] in (line := record.getMessage())]


async def test_a_jwt_in_the_url_is_no_proof(running: Gate) -> None:
    assert (await refused(running, f"/ws?sse_token={JWT}"))[0] == 401


async def test_too_many_connections_of_a_user_evict_the_oldest() -> None:
    async with gate(max_connections_per_user=1) as running, running.wire() as first, running.wire() as second:
        assert (await first.closed())[0] == CloseCode.REPLACED
        assert (await second.ask("ping"))["reply"]


async def test_too_many_connections_are_refused_where_that_is_the_policy() -> None:
    async with gate(max_connections_per_user=1, connection_policy="refuse") as running, running.wire():
        status, problem = await refused(running, Authorization=f"Bearer {token(read=['run:*'])}")

        assert (status, problem["code"]) == (429, "RATE_LIMITED")
        message, code = await told(running, Origin=own(running), Authorization=f"Bearer {JWT}")
        assert code == CloseCode.LIMITED
        assert message["retry_after"] >= 10.0


def _principal() -> Principal:
    return Principal(sub="alice")
