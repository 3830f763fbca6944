"""The client over HTTP, against the real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tailrace.client.client import Tailrace
from tailrace.core.event import Ended, Event, Gap, Record
from tailrace.errors import Forbidden, Malformed, NotFound, StreamClosed, Unauthorized
from tests.support.gateways import gateway_on, mint
from tests.support.serving import Serving
from tests.support.wait import deadline


@pytest.fixture
async def gateway() -> AsyncIterator[Serving]:
    async with gateway_on() as (server, _):
        yield server


@pytest.fixture
async def client(gateway: Serving) -> AsyncIterator[Tailrace]:
    async with Tailrace(gateway.url, token=mint()) as made:
        yield made


async def test_a_published_event_comes_to_a_subscriber_once_and_in_order(client: Tailrace) -> None:
    await client.publish("run:1", "note", {"n": 1})
    subscription = client.subscribe("run:1")

    async with deadline():
        first = await anext(subscription)
        second = asyncio.ensure_future(anext(subscription))
        stored = await client.publish("run:1", "note", {"n": 2})
        item = await second

    assert isinstance(first, Record)
    assert first.data == b'{"n":1}'
    assert isinstance(item, Record)
    assert item.id == stored.id
    assert item.prev == first.id
    assert subscription.cursor == str(stored.id)
