"""`?compact=1`: a reader that comes in the middle of an answer is given a few records, and the same text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.core.sse import ServerEvent, SseParser
from tailrace.eventlog.base import Log
from tests.support.gateways import gateway_on, mint
from tests.support.serving import Serving
from tests.support.wait import deadline

RUN = StreamName.parse("run:1")
WORDS = [f"word{number} " for number in range(3_000)]


@pytest.fixture
async def site() -> AsyncIterator[tuple[Serving, Log]]:
    async with gateway_on() as (server, log):
        deltas = [Event("token.delta", {"step": "s1", "text": word}) for word in WORDS]
        await log.append(RUN, [Event("step.started", {"step": "s1"})])
        for begin in range(0, len(deltas), 500):
            await log.append(RUN, deltas[begin : begin + 500])
        yield server, log


def text_of(records: list[dict[str, Any]]) -> str:
    parts = []
    for record in records:
        if record["type"] == "token.delta":
            parts.append(record["data"]["text"])
        elif record["type"] == "token.snapshot":
            parts += [each["text"] for each in record["data"]["texts"] if each["step"] == "s1"]
    return "".join(parts)


async def end(log: Log) -> None:
    await log.append(RUN, [Event("step.completed", {"step": "s1"})], close=True)


def check(records: list[dict[str, Any]]) -> None:
    assert text_of(records) == "".join(WORDS)
    assert len(records) < 20
    assert [each["prev"] for each in records[1:]] == [each["id"] for each in records[:-1]]


async def test_pages_are_compacted_and_each_goes_on_where_the_one_before_ended(site: tuple[Serving, Log]) -> None:
    server, log = site
    await end(log)
    records: list[dict[str, Any]] = []
    query = {"compact": "1", "limit": "1"}
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {mint()}"}) as client:
        while True:
            answer = (await client.get("/api/v1/streams/run:1/events", params=query)).json()
            assert len(answer["events"]) == 1
            records += answer["events"]
            if not answer["has_more"]:
                break
            query["start_id"] = answer["next_id"]

    check(records)
    assert [each["type"] for each in records] == ["step.started", "token.snapshot", "step.completed"]


async def test_a_refresh_in_mid_answer_on_sse_costs_few_records_and_the_tail_goes_on(site: tuple[Serving, Log]) -> None:
    server, log = site
    parser, records = SseParser(), []
    url = f"{server.url}/api/v1/streams/run:1/events/stream?compact=1"
    async with (
        deadline(30),
        httpx.AsyncClient(headers={"authorization": f"Bearer {mint()}"}, timeout=30) as client,
        client.stream("GET", url) as response,
    ):
        async for chunk in response.aiter_bytes():
            for event in parser.feed(chunk):
                assert isinstance(event, ServerEvent)
                if not event.event.startswith("stream."):
                    records.append(json.loads(event.data))
                    if text_of(records) == "".join(WORDS) and records[-1]["type"] != "step.completed":
                        await end(log)

    check(records)


async def test_a_websocket_of_one_stream_is_compacted_too(site: tuple[Serving, Log]) -> None:
    server, log = site
    await end(log)
    url = f"{server.url}/api/v1/streams/run:1/ws?compact=1".replace("http", "ws", 1)
    async with deadline(30), connect(url, additional_headers={"authorization": f"Bearer {mint()}"}) as socket:
        messages = [json.loads(await socket.recv())]
        while messages[-1].get("control") != "closed":
            messages.append(json.loads(await socket.recv()))

    check([message for message in messages if "control" not in message])
