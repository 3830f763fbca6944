"""On a server that is not ours, as in an embedding application: the same promises without the lent connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import uvicorn
from pydantic import SecretStr
from websockets.asyncio.client import connect

from tailrace.app import create_app
from tailrace.codes import CloseCode
from tailrace.config import Settings
from tailrace.eventlog.memory import MemoryLog
from tests.support.tokens import SECRET, token
from tests.support.wait import eventually
from tests.support.ws import Wire, publish

JWT = token(read=["run:*"], write=["run:*"])


class Plain:
    """A bare uvicorn with its defaults: compression, its own pings, messages of 16 MiB."""

    def __init__(self, log: MemoryLog, port: int) -> None:
        self.log = log
        self.address = f"ws://127.0.0.1:{port}"


@pytest.fixture
async def plain() -> AsyncIterator[Plain]:
    settings = await asyncio.to_thread(
        lambda: Settings(jwt_secret=SecretStr(SECRET), recheck_seconds=0.2, runs_enabled=False)
    )
    log = MemoryLog(kinds=settings.stream_kinds())
    config = uvicorn.Config(create_app(settings, log=log), port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    yield Plain(log, server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    await task
    await log.aclose()


async def test_records_replies_and_ends_are_the_same(plain: Plain) -> None:
    async with connect(f"{plain.address}/ws", additional_headers={"Authorization": f"Bearer {JWT}"}) as socket:
        wire = Wire(socket)
        assert (await wire.get())["control"] == "open"
        ids = await publish(plain.log, 500)

        await wire.ask("subscribe", stream="run:1")

        assert [record["id"] for record in await wire.records(500)] == ids
        assert (await wire.ask("publish", stream="run:1", events={"type": "a"}))["events"]


async def test_the_limit_of_a_message_is_ours(plain: Plain) -> None:
    async with connect(f"{plain.address}/ws", additional_headers={"Authorization": f"Bearer {JWT}"}) as socket:
        await socket.send("é" * 32_769)

        assert (await Wire(socket).closed())[0] == CloseCode.TOO_LARGE


async def test_no_log_line_holds_a_token(plain: Plain, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    secret = "st1_" + "x" * 43

    with pytest.raises(Exception, match="401"):
        async with connect(f"{plain.address}/ws?sse_token={secret}"):
            pass

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    assert any("WebSocket /ws" in line for line in lines)
    assert not any(secret in line for line in lines)
