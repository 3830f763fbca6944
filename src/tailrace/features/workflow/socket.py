"""`…/streams/workflow:{id}/ws`: history, then live, from the stream or from the old channel (PROTOCOL.md §7.7)."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from tailrace.codes import CloseCode
from tailrace.core import frames
from tailrace.core.cursor import Resume
from tailrace.core.names import StreamName
from tailrace.errors import LogError
from tailrace.features.workflow.reader import Reader, State
from tailrace.features.workflow.switchboard import Switchboard
from tailrace.hub.hub import Hub
from tailrace.transports.pulse import Pulse
from tailrace.transports.websocket import Nowhere, Receive, Send, StreamSocket, WsOptions, refuse

__all__ = ["WorkflowSocket"]


class WorkflowSocket(StreamSocket):
    """A connection of one viewer."""

    def __init__(
        self,
        hub: Hub,
        pulse: Pulse,
        options: WsOptions,
        stream: StreamName,
        resume: Resume,
        *,
        board: Switchboard,
        channel: str,
        format: str = "raw",  # noqa: A002 - the word of the wire
        conflate: bool = False,
        compact: bool = False,
    ) -> None:
        super().__init__(hub, pulse, options, stream, resume, format=format, conflate=conflate, compact=compact)
        self._board = board
        self._channel = channel
        self._reader: Reader

    async def serve(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, subprotocol: str | None = None
    ) -> CloseCode | None:
        """See `StreamSocket`."""
        if not await self._accept(scope, receive, send, subprotocol):
            return None
        self._adopt(
            await self._hub.open({}, Nowhere(), stays_open=True, conflate=self._conflate, compact=self._compact)
        )
        self._reader = Reader(self._board, self._stream, self._channel, self._subscription, self._form, self._resume)
        try:
            try:
                if self._reader.resumable:
                    await self._subscription.add(self._stream, self._resume)
                await self._board.add(self._reader)
            except LogError as error:
                await refuse(send, error, retry_after=self._retry_after, seconds=self._options.closing_seconds)
                return error.close_code
            with suppress(OSError):
                await self._start(send, self._form)
                self._reader.begin(self._sink)
                self._pulse.add(self)
                return await self._live(receive, send)
            return None
        finally:
            self._pulse.remove(self)
            self._board.remove(self._reader)
            self._subscription.detach()

    def _first(self) -> bytes:
        return frames.open_payload(
            self._subscription.cursors,
            self._subscription.heads,
            mode=self._reader.mode,
            resumable=self._reader.resumable,
        )

    def _begins_degraded(self) -> bool:
        # Who hears the channel is told how that is; of the log it would not be told the end of it.
        return self._reader.state is not State.CHANNEL and super()._begins_degraded()
