"""A client that reads slowly, or not at all, costs only itself. On lent connections and with plain `send()` alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tailrace.codes import CloseCode
from tailrace.transports.rawhttp import RawChannel
from tests.support.tokens import token
from tests.support.wait import deadline, eventually
from tests.support.ws import RUN, Gate, gate, publish, unlent
from tests.support.ws_raw import RawSocket, frame, handshake

KIB = 1_024
CLIENT_BUFFER = 8 * KIB


@pytest.fixture(params=["lent", "sent"])
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Gate]:
    wrap = unlent if request.param == "sent" else None
    async with gate(stall_seconds=30, send_buffer_bytes=16 * KIB, wrap=wrap) as made:
        yield made


async def open_lazy(running: Gate, client: Any) -> RawSocket:
    """A connection that subscribed and from then on reads only when it is told to."""
    bearer = token(read=["run:*"])
    await client.send(handshake("/api/v1/ws", f"Authorization: Bearer {bearer}"))
    await client.until(b"\r\n\r\n")
    socket = RawSocket(client)
    await socket.next()
    await socket.send(frame(1, b'{"cmd":"subscribe","id":1,"stream":"run:1"}'))
    await socket.next()
    return socket


def channels(running: Gate) -> list[RawChannel]:
    found = [getattr(each, "channel", None) for each in running.server.server.server_state.connections]
    return [channel for channel in found if channel is not None]


async def test_a_slow_reader_replays_from_its_cursor_and_disturbs_nobody(running: Gate) -> None:
    async with running.server.client(receive_buffer=CLIENT_BUFFER) as client, running.wire() as neighbour:
        lazy = await open_lazy(running, client)
        await neighbour.ask("subscribe", stream="run:1")

        for first in range(1, 1_001, 50):
            await publish(running.log, 50, size=8 * KIB, first=first)
            async with deadline(2.0):
                await neighbour.records(50)

        assert all(channel.unsent < 768 * KIB for channel in channels(running))
        seen: list[int] = []
        async with deadline(20.0):
            while len(seen) < 1_000:
                opcode, payload = await lazy.next()
                message = json.loads(payload)
                if opcode == 1 and "data" in message:
                    seen.append(message["data"]["n"])
        assert seen == list(range(1, 1_001))


async def test_records_larger_than_the_limit_pass_one_by_one(running: Gate) -> None:
    async with running.wire(max_size=None) as wire:
        await wire.ask("subscribe", stream="run:1")

        await publish(running.log, 6, size=900 * KIB)

        assert [record["data"]["n"] for record in await wire.records(6)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("way", ["lent", "sent"])
async def test_a_client_that_never_reads_is_closed(way: str) -> None:
    wrap = unlent if way == "sent" else None
    async with (
        gate(stall_seconds=0.5, send_buffer_bytes=16 * KIB, wrap=wrap) as running,
        running.server.client(receive_buffer=CLIENT_BUFFER) as client,
    ):
        await open_lazy(running, client)

        await publish(running.log, 300, size=8 * KIB)

        await eventually(lambda: not len(running.gateway.connections), 10.0)
        if way == "lent":
            async with deadline(5.0):
                while await client.more():
                    pass


async def test_a_client_that_asks_and_never_reads_is_closed() -> None:
    async with (
        gate(stall_seconds=0.5, commands_per_minute=100_000, send_buffer_bytes=4 * KIB) as running,
        running.server.client(receive_buffer=4 * KIB) as client,
    ):
        socket = await open_lazy(running, client)
        question = frame(1, json.dumps({"cmd": "x" * 100, "id": "i" * 64}).encode()) * 50

        async def ask_on() -> None:
            while True:
                await socket.send(question)

        asking = asyncio.create_task(ask_on())
        try:
            await eventually(lambda: not len(running.gateway.connections), 15.0)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def test_what_was_written_is_read_before_the_end(running: Gate) -> None:
    async with running.wire("/streams/run:1/ws", max_size=None) as wire:
        await publish(running.log, 40, size=8 * KIB)

        await running.log.close(RUN)

        assert [record["data"]["n"] for record in await wire.records(40)] == list(range(1, 41))
        assert (await wire.get())["control"] == "closed"
        assert (await wire.closed())[0] == CloseCode.ENDED


async def test_a_middleware_that_rewrites_messages_is_obeyed() -> None:
    def shouting(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def loud(message: Any) -> None:
                if message["type"] == "websocket.send":
                    message = {**message, "text": message["text"].replace("control", "CONTROL")}
                await send(message)

            await app(scope, receive, loud if scope["type"] == "websocket" else send)

        return wrapped

    async with gate(wrap=shouting) as running, running.wire(opened=False) as wire:
        assert (await wire.get())["CONTROL"] == "open"
        assert not channels(running)
        await wire.ask("subscribe", stream="run:1")
        await publish(running.log, 2)
        assert len(await wire.records(2)) == 2
