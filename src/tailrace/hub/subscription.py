"""A subscription: one reader of one or more streams, feeding one sink.

Rules of this file
1. Each stream is a lane: *replaying* (own steps, out of the topic's tail or the log's pages) or *live* (given the
   turn's block).
2. A lane joins the live set in the same step in which its cursor equals the topic's: no await between.
3. A lane's `position` is what the sink took. Nothing else remembers what the reader has; nothing is buffered here.
4. One task, `run`, owns the subscription. `deliver`, `close`, `remove` only change state and wake it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, TypeVar

from tailrace.codes import CloseCode
from tailrace.core.chain import Position
from tailrace.core.event import Degraded, Ended, StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import LogError
from tailrace.hub.block import Block, Sink, SinkClosed, SinkStuck
from tailrace.hub.topic import FIRST_PAGE_RECORDS, PAGE_RECORDS, Stretch, Topic

if TYPE_CHECKING:
    from tailrace.core.cursor import Resume
    from tailrace.hub.hub import Hub

__all__ = ["Lane", "Subscription"]

log = logging.getLogger("tailrace.hub")
T = TypeVar("T")


class Lane:
    """One stream of a subscription."""

    __slots__ = ("finite", "fresh", "live", "position", "sink", "stream", "subscription", "told", "topic")

    def __init__(self, subscription: Subscription, topic: Topic, position: Position, *, finite: bool) -> None:
        self.subscription = subscription
        self.sink = subscription.sink
        """The subscription's: a record for thousands of readers shall not touch more of each than it must."""
        self.topic = topic
        self.stream = topic.stream
        self.position = position
        self.live = False
        self.fresh = True
        """Whether it was given no page yet."""
        self.told: Ended | None = None
        """The end that the sink was told last."""
        self.finite = finite
        """Whether expiry and deletion end the reading too, not only a close."""

    def deliver(self, block: Block, after: Position) -> bool:
        """The turn's block, while live. False: the sink is full, and the lane goes back to replaying."""
        taken = False
        try:
            taken = self.sink.write(block)
        finally:
            if not taken:
                # Also when the sink broke: who is not live and not replaying either would wait for ever.
                self.live = False
                self.subscription.left_live += 1
                self.subscription.wake()
        if taken:
            self.position = after
            if block.ended is not None:
                self.subscription.lane_ended(self, block.ended)
        return taken

    def ends_with(self, ended: Ended) -> bool:
        """Whether this reader is done with the stream now."""
        return self.finite or ended.state is StreamState.CLOSED


class Subscription:
    """See the rules above. Made by `Hub.open`."""

    def __init__(
        self, hub: Hub, sink: Sink, *, stays_open: bool = False, conflate: bool = False, compact: bool = False
    ) -> None:
        self._sink = sink
        self._conflate = conflate
        self._compact = compact
        self.left_live = 0
        """How often a lane left the live set because the sink was full."""
        self._hub = hub
        self._lanes: dict[StreamName, Lane] = {}
        self.stays_open = stays_open
        """Whether it goes on when the last stream has ended; others may be added."""
        self._degraded = hub.degraded
        self._owed: Degraded | None = None
        self._closing: CloseCode | None = None
        self._abandoned = False
        self._woken: asyncio.Future[None] | None = None

    # -- what the transport asks ---------------------------------------------------------------------------

    @property
    def sink(self) -> Sink:
        """Where the bytes go."""
        return self._sink

    @sink.setter
    def sink(self, sink: Sink) -> None:
        self._sink = sink
        for lane in self._lanes.values():
            lane.sink = sink

    @property
    def cursors(self) -> Mapping[StreamName, EntryId]:
        """What the sink was given of each stream."""
        return {stream: lane.position.cursor for stream, lane in self._lanes.items()}

    @property
    def heads(self) -> Mapping[StreamName, EntryId]:
        """Where each stream's live end is now."""
        return {stream: lane.topic.position.cursor for stream, lane in self._lanes.items()}

    @property
    def live(self) -> bool:
        """Whether every lane is in the live set."""
        return all(lane.live for lane in self._lanes.values())

    @property
    def closing(self) -> CloseCode | None:
        """Why `run` is about to return, if it is."""
        return self._closing

    @property
    def degraded(self) -> bool:
        """What the reader was told last of the log; until it is told something, what it is told when it begins."""
        return self._degraded

    @property
    def failing(self) -> bool:
        """Whether one of its streams has to be read and cannot be, although the log answers otherwise."""
        failing = self._hub.failing
        return any(lane.stream in failing and (not lane.live or lane.topic.healing) for lane in self._lanes.values())

    async def add(self, stream: StreamName, resume: Resume) -> Position:
        """Begin to read a stream and answer the position that it begins at.

        Raises:
            LogUnavailable: the log did not answer; nothing changed.
        """
        lane = await self._hub.open_lane(self, stream, resume)
        self.put(lane)
        return lane.position

    def put(self, lane: Lane) -> None:
        """Begin to read a lane that `Hub.open_lane` opened for this subscription; it replaces an earlier one.

        Nothing is written to the sink before the caller waits for something.
        """
        self.remove(lane.stream)
        self._lanes[lane.stream] = lane
        self.wake()

    def remove(self, stream: StreamName) -> bool:
        """Stop reading a stream. False: it was not read."""
        lane = self._lanes.pop(stream, None)
        if lane is None:
            return False
        self._hub.release_lane(lane)
        self.wake()
        return True

    @property
    def finished(self) -> bool:
        """Whether every stream has ended and nothing is left to be given."""
        return all(
            lane.topic.head.ended
            and lane.topic.ends_at(lane.position)
            and lane.ends_with(Ended(lane.stream, lane.position.cursor, lane.topic.head.state))
            for lane in self._lanes.values()
        )

    def abandon(self) -> None:
        """The client is gone: let `run` raise `SinkClosed`."""
        self._abandoned = True
        self.close(CloseCode.GOING_AWAY)

    def close(self, code: CloseCode) -> None:
        """Let `run` return with `code`. The first call counts."""
        if self._closing is None:
            self._closing = code
            self.wake()

    def notice(self, degraded: Degraded) -> None:
        """Tell the reader what it does not know yet; when its sink is full, later."""
        self._owed = degraded if degraded.active is not self._degraded else None
        self.remind()

    def remind(self) -> None:
        """Tell what is still to be told, if the sink takes it now. The hub asks every second."""
        owed = self._owed
        if owed is None:
            return
        try:
            taken = self.sink.write(Block.of(None, [owed]))
        except Exception:
            # One broken sink must not end the hub for the others.
            log.exception("a sink failed")
            taken = True
        if taken:
            self._degraded, self._owed = owed.active, None

    async def run(self) -> CloseCode:
        """Feed the sink until the subscription is closed, every stream has ended, or the client is gone or stuck.

        Raises:
            SinkClosed: the client is gone.
        """
        try:
            while self._closing is None:
                lane = next((lane for lane in self._lanes.values() if not lane.live), None)
                if lane is not None:
                    await self._step(lane)
                elif not self._lanes and not self.stays_open:
                    self.close(CloseCode.ENDED)
                else:
                    await self._wait_woken()
        except SinkStuck:
            self.close(CloseCode.SLOW)
        finally:
            self.detach()
        if self._abandoned:
            raise SinkClosed
        assert self._closing is not None  # noqa: S101 - the loop's condition
        return self._closing

    def detach(self) -> None:
        """Give back the lanes. `run` does it when it ends; call it when `run` was never started."""
        for stream in list(self._lanes):
            self._hub.release_lane(self._lanes.pop(stream))
        self._hub.forget(self)

    # -- steps ---------------------------------------------------------------------------------------------

    async def _step(self, lane: Lane) -> None:
        """One step of a replaying lane towards the live set."""
        topic = lane.topic
        if lane.position.cursor == topic.position.cursor:
            ended = self._untold_end(lane)
            if ended is not None:
                await self._offer(lane, Stretch(Block.of(lane.stream, [ended]), lane.position))
            else:
                lane.position = topic.position
                lane.live = True
                topic.live[lane] = None
            return
        stretch = topic.recent(lane.position)
        if stretch is None:
            stretch = await self._load(lane)
            if stretch is None or self._lanes.get(lane.stream) is not lane:
                return
        if stretch.block.cells:
            await self._offer(lane, stretch)
        elif stretch.after.cursor == lane.position.cursor != topic.position.cursor:
            lane.position = stretch.after
            if stretch.seen == topic.position and stretch.after.chained == topic.position.chained:
                # What the topic had beyond were foreign entries, and they are gone again.
                lane.position = topic.position
                return
            # The log has nothing more, yet the topic is elsewhere: its end is in doubt.
            moved = topic.moved()
            self._hub.doubt(topic)
            await self._until(asyncio.shield(moved))
        else:
            lane.position = stretch.after
        self._rotate(lane)

    def _untold_end(self, lane: Lane) -> Ended | None:
        """The end of the stream, if it is known and a flush is not about to tell it."""
        head = lane.topic.head
        if not head.ended or lane.topic.dirty or not lane.topic.ends_at(lane.position):
            return None
        ended = Ended(lane.stream, lane.position.cursor, head.state)
        return None if lane.told == ended else ended

    async def _load(self, lane: Lane) -> Stretch | None:
        limit = FIRST_PAGE_RECORDS if lane.fresh else PAGE_RECORDS
        try:
            stretch = await self._until(lane.topic.page(lane.position, limit))
            lane.fresh = False
            return stretch
        except LogError as error:
            if not error.retryable:
                log.error("a stream cannot be read", extra={"stream": lane.stream, "code": error.code})
                self.close(CloseCode.INTERNAL)
                return None
            await self._until(self._hub.wait_recovered())
            return None

    async def _offer(self, lane: Lane, stretch: Stretch) -> None:
        """Hand a stretch to the sink, waiting for it as long as the sink says."""
        block = stretch.block.conflated() if self._conflate else stretch.block
        block = block.compacted() if self._compact else block
        while not self.sink.write(block):
            await self._until(self.sink.wait_writable())
            if self._closing is not None or self._lanes.get(lane.stream) is not lane:
                return
        lane.position = stretch.after
        if stretch.block.ended is not None:
            self.lane_ended(lane, stretch.block.ended)

    def lane_ended(self, lane: Lane, ended: Ended) -> None:
        """The sink was told that a stream ended."""
        lane.told = ended
        if lane.ends_with(ended) and self._lanes.get(lane.stream) is lane:
            self.remove(lane.stream)

    def _rotate(self, lane: Lane) -> None:
        """Let the next replaying lane have its turn."""
        if len(self._lanes) > 1 and self._lanes.get(lane.stream) is lane:
            self._lanes[lane.stream] = self._lanes.pop(lane.stream)

    # -- waiting -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let `run` look again."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _wait_woken(self) -> None:
        self._woken = asyncio.get_running_loop().create_future()
        try:
            await self._woken
        finally:
            self._woken = None

    async def _until(self, awaitable: Awaitable[T]) -> T | None:
        """Wait for something, but not when the subscription is closed meanwhile."""
        if self._closing is not None:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            return None
        task = asyncio.ensure_future(awaitable)
        self._woken = asyncio.get_running_loop().create_future()
        try:
            while not task.done():
                await asyncio.wait((task, self._woken), return_when=asyncio.FIRST_COMPLETED)
                if self._woken.done():
                    if self._closing is not None:
                        break
                    self._woken = asyncio.get_running_loop().create_future()
            return task.result() if task.done() else None
        finally:
            self._woken = None
            if not task.done():
                task.cancel()
            elif not task.cancelled():
                # Whoever cancels us in the very turn in which it failed is not to be told again by the loop.
                task.exception()
