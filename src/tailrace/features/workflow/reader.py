"""One viewer of one workflow: which way its messages come, and how it goes from one to the other.

    STREAMS ── roll-back ──► TO_CHANNEL ──► CHANNEL ── rollout ──► TO_STREAM ──► STREAMS
    STREAMS ── the log is away too long ──► AWAY ── it is back ──► BACK ──► STREAMS
    (a viewer that comes while it is begins there)

Rules of this file
1. It is the sink of its subscription: records come by `write`, messages of the old channel by `heard`, time by `tick`.
2. A switch has three steps: note what is told (for `GRACE_SECONDS`), have both ways, leave the first when settled.
   While both ways hold every event nothing is lost or repeated by it; merge.py says what is otherwise.
3. The viewer is told where its messages come from: in the first message, and before the first one of a new way that has
   no ids, or after the last one without.
4. Away is: the log does not answer, refuses what is written, or refuses this stream's reads while the rest goes on.
5. On the channel nothing waits for a viewer: one that leaves too much unread is closed (4001), as one that is slow.
"""

from __future__ import annotations

import asyncio
import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from tailrace.core import frames
from tailrace.core.codec import encode
from tailrace.core.cursor import Special
from tailrace.core.event import Degraded, Record
from tailrace.core.frames import WsForm
from tailrace.core.names import StreamName
from tailrace.errors import LogError, TooLarge
from tailrace.features.workflow.merge import GRACE_SECONDS, Merge, Way
from tailrace.features.workflow.message import event_of
from tailrace.hub.block import Block, SinkClosed
from tailrace.hub.subscription import Subscription

if TYPE_CHECKING:
    from tailrace.core.cursor import Resume
    from tailrace.transports.ws_sink import WsSink

__all__ = ["Board", "Reader", "State", "key_of"]

BEHIND_SECONDS = 5.0
"""So long a stream that is behind is read on beside the channel: what was published before that was heard."""
_NOTHING = Block(None, ())


class State(StrEnum):
    """Where a reader's messages come from."""

    STREAMS = "streams"
    TO_CHANNEL = "to-channel"
    CHANNEL = "channel"
    TO_STREAM = "to-stream"
    AWAY = "away"
    """The log does not answer; the channel is heard instead, as far as there is one."""
    BACK = "back"


class Board(Protocol):
    """What a reader needs of the process it is in."""

    fallback_seconds: float

    @property
    def hears(self) -> bool:
        """Whether messages of the channels come now."""

    def reads_stream(self, stream: StreamName) -> bool:
        """Whether this stream's viewers read the log now."""

    def join(self, reader: Reader) -> None:
        """Hear the reader's channel as soon as that can be."""

    def leave(self, reader: Reader) -> None:
        """The reader does not hear its channel any more."""

    def away_since(self) -> float | None:
        """Since when the log does not answer, or refuses what is written; None: it does not."""

    def fell_back(self, stream: StreamName) -> None:
        """A viewer of this stream is given its channel, since the log is away."""


class Reader:
    """See the rules above."""

    def __init__(
        self,
        board: Board,
        stream: StreamName,
        channel: str,
        subscription: Subscription,
        form: WsForm,
        resume: Resume = Special.DEFAULT,
    ) -> None:
        self.stream = stream
        self.channel = channel
        self.state = State.STREAMS if board.reads_stream(stream) else State.CHANNEL
        self.sink: WsSink | None = None
        self._early: list[tuple[bytes, bytes]] = []
        """Messages that were heard while the first message was sent."""
        self._unheard = False
        self._board = board
        self._subscription = subscription
        self._form = form
        self._resume = resume
        """Where the reading of the log begins, if it was not to be had before."""
        self._gone = False
        self._attaching = False
        self._failing_since: float | None = None
        self._troubled = False
        """Whether the viewer knows that the log is away."""
        self._merge: Merge | None = None
        self._ready_at = 0.0
        """When a switch may be over at the earliest; after a fall-back, when twins of what was told have come."""
        self._now = asyncio.get_running_loop().time
        if self.state is State.STREAMS and self._is_long(board.away_since()):
            self.state, self._merge = State.AWAY, Merge(Way.CHANNEL)
            board.fell_back(stream)

    @property
    def resumable(self) -> bool:
        """Whether the messages that come now have ids to come back with."""
        by_stream = self._merge is None or self._merge.lead is Way.STREAM
        return by_stream and self.state in (State.STREAMS, State.TO_CHANNEL, State.BACK)

    @property
    def mode(self) -> str:
        """The way, as the viewer is told it."""
        return "streams" if self.resumable else "pubsub"

    def begin(self, sink: WsSink) -> None:
        """The first message was sent: from now on the sink takes more."""
        self.sink = sink
        self._subscription.stays_open = self.state is not State.STREAMS
        self._subscription.sink = self
        early, self._early = self._early, []
        for text, key in early:
            self.heard(text, key)

    def end(self) -> None:
        """The viewer is gone: a switch that is under way takes nothing more."""
        self._gone = True

    # -- the log (Sink) -----------------------------------------------------------------------------------------------

    def write(self, block: Block) -> bool:
        """See `Sink`."""
        if self.sink is None:
            return False
        if self._merge is None:
            if self.state is State.CHANNEL and block.stream is None:
                return True  # how the log is does not matter here; the channel's own link is told
            return self.sink.write(block)
        if not self.sink.write(_NOTHING):
            return False
        now = self._now()
        for cell in block.cells:
            item = cell.item
            if isinstance(item, Record):
                self._say(self._merge.record(_digest(item.data), self._form.item(item), now))
            else:
                self._put(frames.control_payload(item))
        asyncio.get_running_loop().call_soon(self._finish)
        return True

    async def wait_writable(self) -> None:
        """See `Sink`."""
        if self.sink is None:
            raise SinkClosed
        await self.sink.wait_writable()

    # -- the channel --------------------------------------------------------------------------------------------------

    def heard(self, text: bytes, key: bytes) -> None:
        """A message of the channel; `key` is what `key_of` says, or empty while nobody needs it."""
        if self.sink is None:
            self._early.append((text, key))
        elif self._merge is not None:
            self._say(self._merge.message(key, text, self._now()))
            self._finish()
        elif self.state is State.CHANNEL:
            self._put(text)

    @property
    def needs_key(self) -> bool:
        """Whether `heard` compares messages now."""
        return self._merge is not None

    def link(self, *, up: bool) -> None:
        """The channel's connection was lost, or is back; what was published meanwhile is lost to this viewer."""
        if up is self._unheard and (up or not self.resumable):
            self._unheard = not up
            self._put(frames.degraded_payload(Degraded(active=not up)))

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """A moment passed. Answer whether a switch is to begin: then `switch` has to be run."""
        now = self._now()
        away = self._away_since(now)
        if self.sink is None:
            return False
        if self.state is not State.CHANNEL and (away is not None) is not self._troubled:
            self._troubled = away is not None
            self._subscription.notice(Degraded(active=self._troubled))
        if self._merge is not None and self.state is not State.STREAMS:
            self._overdue(now, self._merge)
        if self.state is State.STREAMS and away is not None:
            self._prepare(now, away)
        elif self.state is State.STREAMS and self._merge is not None:
            self._merge = None  # it is back before anything had to be done
            self._board.leave(self)
        if self.state is State.AWAY:
            return self._look_back(now, away)
        if self._merge is not None:
            self._finish()
            return False
        # To what does not answer nobody moves.
        held = self.state is State.CHANNEL and away is not None
        return not held and self._board.reads_stream(self.stream) is not (self.state is State.STREAMS)

    def _overdue(self, now: float, merge: Merge) -> None:
        """Tell what has waited long enough. A stream that is behind or dead holds nobody on the way to the channel."""
        told = merge.overdue(now)
        if told and self.state is State.TO_CHANNEL and merge.lead is Way.STREAM:
            told += self._follow_channel(now, merge, "rollout")
            self._ready_at = now + BEHIND_SECONDS
        self._say(told)

    def _follow_channel(self, now: float, merge: Merge, reason: str) -> list[bytes]:
        """Let the channel lead, and say so before the first message of it. Answer what waited."""
        merge.forgive(Way.CHANNEL, now - GRACE_SECONDS)  # twins of the very first were not heard
        waited = merge.follow(Way.CHANNEL, now)
        self._tell(reason)
        return waited

    def _away_since(self, now: float) -> float | None:
        if not self._subscription.failing:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        times = [since for since in (self._board.away_since(), self._failing_since) if since is not None]
        return min(times, default=None)

    def _is_long(self, since: float | None, less: float = 0.0) -> bool:
        return since is not None and self._now() - since >= self._board.fallback_seconds - less

    def _prepare(self, now: float, away: float) -> None:
        """Pushes may still come: before the fall-back what is told is noted, and what is heard waits."""
        if self._merge is not None:
            if self._is_long(away) and now >= self._ready_at:
                self._fall_back(now, self._merge)
        elif self._is_long(away, 2 * GRACE_SECONDS):
            self._merge, self._ready_at = Merge(Way.STREAM), now + GRACE_SECONDS
            self._board.join(self)

    def _look_back(self, now: float, away: float | None) -> bool:
        """What a reader without its log does in a moment. Answer as `tick`."""
        assert self._merge is not None  # noqa: S101 - AWAY has one
        if self._ready_at and now >= self._ready_at:
            self._ready_at = 0.0
            self._merge.forgive(Way.CHANNEL, now)
        if not self._board.reads_stream(self.stream):
            self._settle_on_channel()
        elif away is None and self.stream in self._subscription.cursors:
            self._come_back(now, self._merge)
        else:
            return away is None and not self._attaching
        return False

    async def switch(self) -> None:
        """Begin to go the other way, after a rollout or a roll-back; or read what was away from the beginning."""
        if self.state is State.AWAY:
            await self._attach()
            return
        to_stream = self.state is State.CHANNEL
        self._merge = Merge(Way.CHANNEL if to_stream else Way.STREAM)
        self.state = State.TO_STREAM if to_stream else State.TO_CHANNEL
        self._ready_at = float("inf")
        await asyncio.sleep(GRACE_SECONDS)
        if self._gone:
            return
        if to_stream:
            try:
                await self._add(Special.NOW)
            except LogError:
                self.state, self._merge = State.CHANNEL, None  # a later tick tries again
                return
        else:
            self._subscription.stays_open = True
            self._board.join(self)
        self._ready_at = self._now() + GRACE_SECONDS

    async def _attach(self) -> None:
        self._attaching = True
        try:
            await self._add(self._resume)
        except LogError:
            return  # a later tick tries again
        finally:
            self._attaching = False
        if self.state is not State.AWAY:
            self._subscription.remove(self.stream)

    async def _add(self, resume: Resume) -> None:
        await self._subscription.add(self.stream, resume)
        if self._gone:  # what it was given back before knows nothing of this
            self._subscription.remove(self.stream)

    def _fall_back(self, now: float, merge: Merge) -> None:
        self.state = State.AWAY
        self._ready_at = now + GRACE_SECONDS
        self._subscription.stays_open = True
        self._say(self._follow_channel(now, merge, "log_unavailable"))
        self._board.fell_back(self.stream)

    def _come_back(self, now: float, merge: Merge) -> None:
        self.state = State.BACK
        self._say(merge.follow(Way.STREAM, now))
        self._ready_at = now + GRACE_SECONDS

    def _finish(self) -> None:
        """End a switch if it may end now."""
        merge, now = self._merge, self._now()
        if merge is None or self.state in (State.AWAY, State.STREAMS) or now < self._ready_at:
            return
        if not merge.settled(Way.CHANNEL if self.state is State.TO_CHANNEL else Way.STREAM, now):
            return
        if self.state is not State.TO_CHANNEL and not self._subscription.live:
            return  # what it has yet to read may have been told
        if self.state is State.TO_CHANNEL:
            told = not self.resumable
            self._settle_on_channel()
            if not told:
                self._tell("rollout")
            return
        reason = "log_available" if self.state is State.BACK else "rollout"
        self.link(up=True)  # whether the channel is heard does not matter any more
        self.state, self._merge = State.STREAMS, None
        self._subscription.stays_open = False
        self._board.leave(self)
        self._tell(reason)
        self._subscription.wake()

    def _settle_on_channel(self) -> None:
        told, self._troubled = self._troubled or self._unheard, False
        self.state, self._merge = State.CHANNEL, None
        self._subscription.notice(Degraded(active=False))  # not shown: what counts from now on is the channel's link
        self._unheard = not self._board.hears
        if self._unheard is not told:
            self._put(frames.degraded_payload(Degraded(active=self._unheard)))
        self._subscription.stays_open = True
        self._subscription.remove(self.stream)

    def _tell(self, reason: str) -> None:
        cursor = self._subscription.cursors.get(self.stream) if self.resumable else None
        payload = frames.mode_payload(self.stream, self.mode, resumable=self.resumable, reason=reason, cursor=cursor)
        self._put(payload)

    def _say(self, told: list[bytes]) -> None:
        for frame in told:
            self._put(frame)

    def _put(self, payload: bytes) -> None:
        if self.sink is not None:
            self.sink.say(payload)


def key_of(text: bytes) -> bytes:
    """What a message and its record have in common."""
    try:
        return _digest(encode(event_of(text).data, max_bytes=1 << 30))
    except TooLarge:
        return _digest(text)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
