"""The live end of a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tailrace.core.event import Record
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.eventlog.base import TailListener

__all__ = ["MemoryTail"]

_CHECK_SECONDS = 0.1


class MemoryTail:
    """The live end of a `MemoryLog`."""

    def __init__(self, tails: list[MemoryTail], head_of: Callable[[StreamName], Head], listener: TailListener) -> None:
        self._tails = tails
        self._head_of = head_of
        self._listener = listener
        self._watched: dict[StreamName, Head] = {}

    async def run(self) -> None:
        """Notice what the clock changes, until cancelled."""
        try:
            while True:
                await asyncio.sleep(_CHECK_SECONDS)
                for stream, before in list(self._watched.items()):
                    head = self._head_of(stream)
                    if (head.id, head.state, head.incarnation) != (before.id, before.state, before.incarnation):
                        self._watched[stream] = head
                        self._listener.on_head(stream, head)
        finally:
            self._watched.clear()
            if self in self._tails:
                self._tails.remove(self)

    async def watch(self, stream: StreamName) -> Head:
        """Begin to push a stream's records."""
        if self not in self._tails:
            self._tails.append(self)
        head = self._head_of(stream)
        self._watched[stream] = head
        return head

    def unwatch(self, stream: StreamName) -> None:
        """Stop pushing a stream."""
        self._watched.pop(stream, None)

    @property
    def watching(self) -> int:
        """How many streams are watched."""
        return len(self._watched)

    def changed(self, stream: StreamName, records: list[Record], *, changed: bool) -> None:
        """Tell the listener in the next loop turn, in order."""
        if stream in self._watched:
            asyncio.get_running_loop().call_soon(self._deliver, stream, records, changed)

    def _deliver(self, stream: StreamName, records: list[Record], changed: bool) -> None:
        if stream not in self._watched or self not in self._tails:
            return
        if records:
            self._listener.on_records(stream, records)
        head = self._head_of(stream)
        self._watched[stream] = head
        if changed:
            self._listener.on_head(stream, head)
