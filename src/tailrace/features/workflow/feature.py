"""Workflows in a gateway: the WebSocket of their viewers, from the stream or from the old channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tailrace.core.names import StreamName
from tailrace.errors import LogRefused, LogUnavailable
from tailrace.eventlog.features import read_features
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.pubsub import Channels
from tailrace.features.workflow.message import KIND, ChannelTemplate, unescape_name
from tailrace.features.workflow.socket import WorkflowSocket
from tailrace.features.workflow.switchboard import Switchboard
from tailrace.web.feature import Feature, Worker

if TYPE_CHECKING:
    from tailrace.transports.websocket import StreamSocket, WsOptions
    from tailrace.web.feature import Asked
    from tailrace.web.gateway import Gateway

__all__ = ["WorkflowFeature"]

log = logging.getLogger("tailrace.workflow")

ReadsStream = Callable[[StreamName], bool]


class WorkflowFeature(Feature):
    """See above.

    Args:
        reads_stream: whether a stream's viewers read the log now; without it `workflow_mode` says.
        on_fallback: told for each viewer that is given its channel because the log is away.
    """

    name = "workflow"

    def __init__(
        self, reads_stream: ReadsStream | None = None, *, on_fallback: Callable[[StreamName], None] | None = None
    ) -> None:
        self._reads_stream = reads_stream
        self._on_fallback = on_fallback
        self.has_streams = True
        """False: the server was asked, and has none."""
        self._board: Switchboard | None = None
        self._channels: Channels | None = None
        self._prefix = ""
        self._pubsub_only = False

    @property
    def board(self) -> Switchboard:
        """The viewers. Raises: LogUnavailable before the start and after the end."""
        if self._board is None:
            raise LogUnavailable("the server is starting")
        return self._board

    def without_log(self) -> Mapping[str, Any] | None:
        """See `Feature`: a gateway that is set to Pub/Sub, on a server without Streams, whose channels are heard."""
        if self.has_streams or not self._pubsub_only or self._board is None or not self._board.hears:
            return None
        return {"mode": "pubsub", "resumable": False, "why": "the server has no Streams"}

    def socket(self, gateway: Gateway, options: WsOptions, asked: Asked) -> StreamSocket | None:
        """See `Feature`."""
        if asked.stream.kind != KIND:
            return None
        return WorkflowSocket(
            gateway.hub,
            gateway.pulse,
            options,
            asked.stream,
            asked.resume,
            board=self.board,
            channel=ChannelTemplate(gateway.settings.workflow_channel).channel(unescape_name(asked.stream.name)),
            format=asked.format or "raw",
            conflate=asked.conflate,
            compact=asked.compact,
        )

    @asynccontextmanager
    async def running(self, gateway: Gateway) -> AsyncIterator[None]:
        """See `Feature`."""
        settings = gateway.settings
        self._prefix = settings.key_prefix
        if isinstance(gateway.log, RedisLog):
            self._channels = Channels(gateway.log.topology)
        enabled = settings.redis_stream_enabled
        self._pubsub_only = not enabled or settings.workflow_mode == "pubsub"
        by_mode = settings.workflow_mode in ("streams", "dual")
        reads = self._reads_stream or (lambda _: by_mode)
        self._board = Switchboard(
            gateway.hub,
            self._channels,
            prefix=settings.key_prefix,
            reads_stream=lambda stream: enabled and self.has_streams and reads(stream),
            fallback_seconds=settings.workflow_fallback_seconds,
            refuses=lambda: gateway.probe.reason == LogRefused.code and not gateway.probe.healthy,
            on_fallback=self._on_fallback,
        )
        try:
            yield
        finally:
            self._board = None
            if self._channels is not None:
                await self._channels.aclose()

    def workers(self, gateway: Gateway) -> Mapping[str, Worker]:
        """See `Feature`."""
        return {"viewers": self._work}

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.board.run(), name="workflow-viewers")
            await self._ask_server()

    async def _ask_server(self) -> None:
        """Know whether the server has Streams, as soon as it answers."""
        while self._channels is not None:
            try:
                self.has_streams = (await read_features(self._channels.topology, prefix=self._prefix)).has_streams
            except LogUnavailable:
                await asyncio.sleep(1.0)
                continue
            if not self.has_streams:
                log.warning("the server has no Streams: workflows are read from their channels only")
            return
