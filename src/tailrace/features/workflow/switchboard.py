"""All viewers of a process: one listener for their channels, one clock for their switches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tailrace.features.workflow.reader import Reader, key_of
from tailrace.hub.hub import Hub

__all__ = ["Switchboard"]

TICK_SECONDS = 0.25
SUBSCRIBE_SECONDS = 5.0


class Switchboard:
    """Owns the listener; tells readers what was heard and when to look again.

    Args:
        hub: says whether the log answers.
        channels: the old channels; None: the log is none of Redis, and there are none.
        prefix: of keys and of the listener's probe.
        reads_stream: whether a stream's viewers read the log now.
        fallback_seconds: how long the log may not answer before the old channels are heard.
        refuses: whether the log answers, but takes nothing.
        on_fallback: told for each viewer that is given its channel for that reason.
    """

    def __init__(
        self,
        hub: Hub,
        channels: Channels | None,
        *,
        prefix: str,
        reads_stream: Callable[[StreamName], bool],
        fallback_seconds: float,
        refuses: Callable[[], bool] = lambda: False,
        on_fallback: Callable[[StreamName], None] | None = None,
    ) -> None:
        self.fallback_seconds = fallback_seconds
        self._on_fallback = on_fallback
        self._hub = hub
        self._channels = channels
        self._reads_stream = reads_stream
        self._refuses = refuses
        self._readers: dict[Reader, None] = {}
        self._listening: dict[bytes, dict[Reader, None]] = {}
        self._away_since: float | None = None
        self._listener: Listener | None = None
        if channels is not None:
            self._listener = Listener(channels, prefix=prefix, on_message=self._heard, on_link=self._link)

    @property
    def hears(self) -> bool:
        """Whether messages of the old channels come now: proved every second."""
        return self._listener is not None and self._listener.up

    async def run(self) -> None:
        """Own the listener and the switches until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._listener is not None:
                group.create_task(self._listener.run(), name="workflow-channels")
            while True:
                self._look()
                for reader in list(self._readers):
                    if reader.tick():
                        group.create_task(reader.switch(), name=f"switch {reader.stream}")
                await asyncio.sleep(TICK_SECONDS)

    async def add(self, reader: Reader) -> None:
        """Take a reader that begins; one of a channel hears it when this returns.

        Raises:
            LogUnavailable: its channel cannot be heard.
        """
        if not reader.resumable:
            if self._listener is None:
                raise LogUnavailable("this log has no Pub/Sub")
            self.join(reader)
            try:
                await self._listener.subscribe(reader.channel, seconds=SUBSCRIBE_SECONDS)
            except BaseException:
                self.leave(reader)
                raise
        self._readers[reader] = None

    def remove(self, reader: Reader) -> None:
        """The reader has ended."""
        reader.end()
        self._readers.pop(reader, None)
        self.leave(reader)

    # -- what readers ask (Board) -------------------------------------------------------------------------------------

    def reads_stream(self, stream: StreamName) -> bool:
        """See `Board`."""
        return self._channels is None or self._reads_stream(stream)

    def join(self, reader: Reader) -> None:
        """See `Board`."""
        self._listening.setdefault(reader.channel.encode(), {})[reader] = None
        if self._listener is not None:
            self._listener.want(reader.channel)

    def leave(self, reader: Reader) -> None:
        """See `Board`."""
        name = reader.channel.encode()
        readers = self._listening.get(name)
        if readers is None or readers.pop(reader, self) is self:
            return
        if not readers:
            del self._listening[name]
            if self._listener is not None:
                self._listener.unsubscribe(reader.channel)

    def away_since(self) -> float | None:
        """See `Board`."""
        return self._away_since

    def fell_back(self, stream: StreamName) -> None:
        """See `Board`."""
        if self._on_fallback is not None:
            self._on_fallback(stream)

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if not self._hub.degraded and not self._refuses():
            self._away_since = None
        elif self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()

    def _heard(self, channel: bytes, message: bytes) -> None:
        readers = self._listening.get(channel)
        if not readers:
            return
        key = key_of(message) if any(reader.needs_key for reader in readers) else b""
        text = _as_text(message)
        for reader in list(readers):
            reader.heard(text, key)

    def _link(self, up: bool) -> None:
        for readers in self._listening.values():
            for reader in readers:
                reader.link(up=up)


def _as_text(message: bytes) -> bytes:
    """A WebSocket's text is UTF-8; what is none is sent with replacement characters, as old gateways did."""
    try:
        message.decode()
    except UnicodeDecodeError:
        return message.decode(errors="replace").encode()
    return message
