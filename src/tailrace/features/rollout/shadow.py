"""The shadow reader of one kind: hears all old channels, reads every stream it hears of, and compares the two.

Rules of this file
1. It reads as viewers do: the channels by Pub/Sub, the streams through the hub. What viewers would miss, it misses.
2. It compares only what every writer must have written both ways: streams that were on before the last change, and are.
3. Whatever may have cost us messages (a lost connection, a gap, too many streams at once) starts the comparison anew.
4. A stream that has been silent gives its place to a new one. While none is, new ones are not compared: what is begun
   anew for each of them judges nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from tailrace.codes import CloseCode
from tailrace.core.comparison import LATE_SECONDS, PATIENCE_SECONDS, Comparison, Side, content_of
from tailrace.core.cursor import Since
from tailrace.core.event import Ended, Gap, Record
from tailrace.core.names import StreamName, escape_name
from tailrace.core.rollout import GuardLimits, Mode
from tailrace.errors import InvalidStream, LogError
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tailrace.features.rollout.view import RolloutView
from tailrace.hub.block import Block, SinkClosed
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription

__all__ = ["Shadow"]

log = logging.getLogger("tailrace.rollout")

MAX_STREAMS = 1_000
"""Streams that are compared at once."""
BEFORE_SECONDS = 2.0
"""A stream that is heard of is read from a moment before: its record may be older than its message."""
QUEUE = 10_000
ADDED_AT_ONCE = 32


class _Compared(msgspec.Struct):
    """One stream."""

    begun: float
    """Since when it is read."""
    heard: float
    """When its channel was last heard."""


class Shadow:
    """See the rules above. `run` owns everything; `comparison` is what was found.

    Args:
        kind: of the streams.
        view: what is on, and the clock.
        hub: reads the streams.
        channels: the old channels' server.
        template: the old channels' names, with `{id}`.
        prefix: of our own keys, for the listener's probe.
        clock: seconds that only grow.
        limits: of the guards, which judge what is found.
    """

    def __init__(
        self,
        kind: str,
        *,
        view: RolloutView,
        hub: Hub,
        channels: Channels,
        template: str,
        prefix: str,
        clock: Callable[[], float],
        limits: GuardLimits,
    ) -> None:
        self.kind = kind
        # What may lag behind must not be missing before.
        self._patience = max(PATIENCE_SECONDS, limits.lag_seconds + 1.0)
        self.comparison = Comparison(patience_seconds=self._patience, window_seconds=limits.window_seconds)
        self._view = view
        self._hub = hub
        self._clock = clock
        self._before, _, self._after = template.partition("{id}")
        self._streams: OrderedDict[StreamName, _Compared] = OrderedDict()
        """Those that are read, the ones heard last at the end."""
        self._era: tuple[float, bool] | None = None
        """The last change, and whether it had settled."""
        self._ready: set[StreamName] = set()
        self._subscription: Subscription | None = None
        self._new: asyncio.Queue[StreamName] = asyncio.Queue(QUEUE)
        self._listener = Listener(
            channels,
            prefix=prefix,
            on_message=self._heard,
            on_link=self._link,
            patterns=[f"{_literal(self._before)}*{_literal(self._after)}"],
        )

    @property
    def streams(self) -> list[StreamName]:
        """Those that are compared, the ones heard last at the end."""
        return list(self._streams)

    async def run(self) -> None:
        """Compare until cancelled, or until the hub reads nothing more for us: it drains, or cannot read for good."""
        await self._hub.wait_running()
        self._subscription = await self._hub.open({}, self, stays_open=True)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listener.run(), name=f"shadow channels {self.kind}")
                group.create_task(self._read(self._subscription), name=f"shadow streams {self.kind}")
                group.create_task(self._follow(self._subscription), name=f"shadow new streams {self.kind}")
                while True:
                    await asyncio.sleep(0.5)
                    self.comparison.expire(self._clock())
        except* SinkClosed:
            log.info("the comparison has ended", extra={"kind": self.kind})
        finally:
            self._subscription.close(CloseCode.GOING_AWAY)
            self._subscription.detach()

    def compares(self, stream: StreamName) -> bool:
        """Whether every writer writes this stream's events both ways now."""
        rollout, now = self._view.rollout_of(self.kind), self._view.now()
        era = rollout.since, rollout.is_settled(now)
        if era != self._era:
            # Of an event that is on its way now, one side would be compared and the other not.
            self._era = era
            self.restart()
        return rollout.is_settled(now) and not rollout.finalized and self._view.mode_of(stream) is Mode.DUAL

    # -- the channels -----------------------------------------------------------------------------------------------

    def _heard(self, channel: bytes, message: bytes) -> None:
        stream = self._stream_of(channel)
        if stream is None or not self.compares(stream):
            return
        now = self._clock()
        if stream not in self._streams:
            if not self._has_place(now):
                return
            if self._new.full():
                self.restart()
                return
            self._new.put_nowait(stream)
            self._streams[stream] = _Compared(now, now)
        self._streams[stream].heard = now
        self._streams.move_to_end(stream)
        # Before its stream is read, a message says nothing about how soon its record comes.
        doubtful = stream not in self._ready
        self.comparison.saw(Side.CHANNEL, content_of(stream, message), now, doubtful=doubtful)

    def _has_place(self, now: float) -> bool:
        """Whether one more can be compared; the one that was silent for longest may have to go."""
        if len(self._streams) < MAX_STREAMS:
            return True
        oldest, compared = next(iter(self._streams.items()))
        # What it had was judged by then, so that nothing has to begin anew.
        if oldest not in self._ready or now - compared.heard <= self._patience + LATE_SECONDS:
            return False
        self._leave(oldest)
        return True

    def _leave(self, stream: StreamName) -> None:
        self._streams.pop(stream, None)
        self._ready.discard(stream)
        if self._subscription is not None:
            self._subscription.remove(stream)

    def _stream_of(self, channel: bytes) -> StreamName | None:
        with contextlib.suppress(InvalidStream, UnicodeDecodeError):
            text = channel.decode()
            name = text.removeprefix(self._before)
            if self._after:
                name = name.removesuffix(self._after)
            # Without a key prefix our own push channels match the pattern; theirs have braces.
            if "{" not in text and len(text) == len(self._before) + len(name) + len(self._after):
                return StreamName.parse(f"{self.kind}:{escape_name(name)}")
        return None

    def _link(self, up: bool) -> None:
        del up  # down: messages are lost from now on; up: they were until now
        self.restart()

    def restart(self) -> None:
        """Messages may have been lost on the way to us: begin anew."""
        now = self._clock()
        self.comparison.restart(now)
        for compared in self._streams.values():
            compared.begun = now

    # -- the streams ------------------------------------------------------------------------------------------------

    async def _follow(self, subscription: Subscription) -> None:
        """Begin to read the streams that were heard of."""
        while True:
            batch = [await self._new.get()]
            while not self._new.empty() and len(batch) < ADDED_AT_ONCE:
                batch.append(self._new.get_nowait())
            await asyncio.gather(*(self._add(subscription, stream) for stream in batch))

    async def _add(self, subscription: Subscription, stream: StreamName) -> None:
        try:
            await subscription.add(stream, Since(int((self._view.now() - BEFORE_SECONDS) * 1_000)))
        except LogError as exc:
            log.info("a stream cannot be compared", extra={"stream": stream, "error": str(exc)})
            self._streams.pop(stream, None)
            self.restart()
        else:
            if (compared := self._streams.get(stream)) is None:
                subscription.remove(stream)
                return
            compared.begun = self._clock()
            self._ready.add(stream)

    async def _read(self, subscription: Subscription) -> None:
        await subscription.run()
        raise SinkClosed  # what is heard from now on would be missing: whoever leads begins again

    def write(self, block: Block) -> bool:
        """See `Sink`."""
        for item in block.items:
            if isinstance(item, Record):
                self._took(item)
            elif isinstance(item, Ended):
                # A kind that begins now is read on after its stream expired; when it is heard again is soon enough.
                self._leave(item.stream)
            elif isinstance(item, Gap) and item.missed != 0:
                self.restart()
        return True

    def _took(self, record: Record) -> None:
        compared = self._streams.get(record.stream)
        if compared is None or not self.compares(record.stream):
            return
        appended = self._clock() - (self._view.now() - record.time / 1_000)
        content = content_of(record.stream, record.data)
        # What is as old as our listening may have had its message before it.
        self.comparison.saw(Side.STREAM, content, self._clock(), doubtful=appended < compared.begun + LATE_SECONDS)

    async def wait_writable(self) -> None:
        """See `Sink`; this one is never full."""


def _literal(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
