"""Publishers, and a subscriber as it was written before there were streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import hiredis
import pytest
import pytest_asyncio

from tailrace.core.names import StreamName
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.workflow.feature import WorkflowFeature
from tailrace.features.workflow.publisher import WorkflowPublisher
from tests.support.redis_servers import RedisServer
from tests.support.wait import deadline
from tests.support.ws import Gate, gate


class MakePublisher(Protocol):
    def __call__(self, url: str | None = None, **options: Any) -> WorkflowPublisher: ...


@pytest.fixture
def channel(key_prefix: str) -> str:
    """The old channels of this test."""
    return f"{key_prefix}old:{{id}}"


@pytest_asyncio.fixture
async def make(redis70: RedisServer, key_prefix: str, channel: str) -> AsyncIterator[MakePublisher]:
    """Make publishers that end with the test."""
    made: list[WorkflowPublisher] = []

    def make(url: str | None = None, **options: Any) -> WorkflowPublisher:
        given: dict[str, Any] = {"key_prefix": key_prefix, "channel": channel, "timeout_seconds": 20.0} | options
        made.append(WorkflowPublisher(url or redis70.url, **given))
        return made[-1]

    yield make
    for publisher in made:
        await publisher.aclose()


class OldSubscriber:
    """Subscribes to one channel over a bare socket, and shows what came byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream, self._writer = reader, writer
        self._replies = hiredis.Reader()

    async def get(self, seconds: float = 60.0) -> bytes:
        """The next message."""
        return bytes((await self._reply(seconds))[2])

    async def many(self, count: int) -> list[bytes]:
        """The next messages."""
        return [await self.get() for _ in range(count)]

    async def _reply(self, seconds: float = 60.0) -> list[Any]:
        async with deadline(seconds):
            while (reply := self._replies.gets()) is False:
                data = await self._stream.read(65_536)
                assert data, "the server closed the connection"
                self._replies.feed(data)
        assert isinstance(reply, list), reply
        return reply

    @classmethod
    @asynccontextmanager
    async def of(cls, server: RedisServer, channel: str) -> AsyncIterator[OldSubscriber]:
        """Subscribe; what is published from now on comes."""
        reader, writer = await asyncio.open_unix_connection(str(server.socket))
        try:
            self = cls(reader, writer)
            writer.write(hiredis.pack_command(("SUBSCRIBE", channel)))  # type: ignore[arg-type]
            await self._reply()
            yield self
        finally:
            writer.transport.abort()


class Serve(Protocol):
    def __call__(self, server: RedisServer, **settings: Any) -> Any: ...


@pytest.fixture
def serve(key_prefix: str, channel: str) -> Serve:
    """Serve a gateway on a Redis; `moved` is the rollout: while it is not set, streams are not read. Who falls back is
    added to `fallen`. `url`: another login."""

    @asynccontextmanager
    async def serve(
        server: RedisServer,
        *,
        url: str | None = None,
        moved: asyncio.Event | None = None,
        fallen: list[StreamName] | None = None,
        **settings: Any,
    ) -> AsyncIterator[Gate]:
        delivery = settings.get("delivery", "push")
        log = RedisLog.connect(url or server.url, prefix=key_prefix, delivery=delivery)
        feature = WorkflowFeature(
            None if moved is None else lambda stream: moved.is_set(),
            on_fallback=None if fallen is None else fallen.append,
        )
        given: dict[str, Any] = {
            "key_prefix": key_prefix,
            "workflow_channel": channel,
            "max_connections_per_user": 0,
        } | settings
        try:
            async with gate(log, features=[feature], **given) as running:
                yield running
        finally:
            await log.aclose()

    return serve
