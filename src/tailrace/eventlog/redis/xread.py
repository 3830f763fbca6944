"""The xread tail: entries by blocking reads, foreign ones too; for one server or Sentinel.

Rules of this file
1. "From now" is resolved to an id once, before the head is read; from then on every entry behind that id is given.
   Nothing is kept while a stream is attached: its entries wait in the log.
2. A blocked XREAD is woken, never cancelled: an entry in the reader's own control stream returns it, so that it is sent
   again with the streams of then. Should the wake be lost, BLOCK is bounded.
3. After an interruption the readers begin at the streams' ends and tell a doubt for what lies between: the listener
   reads that in pages, whose size is bounded in bytes; XREAD's is not.
4. About once a second every stream is compared with the log, as in push.py. XREAD alone would wait for ever behind the
   end of a stream that was deleted, expired, closed or rolled back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tailrace.core.event import StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.errors import ConfigError, LogUnavailable
from tailrace.eventlog.base import TailListener
from tailrace.eventlog.redis.asker import Asker, Pause, in_seconds, look_out
from tailrace.eventlog.redis.changes import ask_changed, ask_tips
from tailrace.eventlog.redis.connection import Arg, Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint, Mode
from tailrace.eventlog.redis.fields import read_entry
from tailrace.eventlog.redis.keys import Keys, StreamKeys
from tailrace.eventlog.redis.scripts import read_id
from tailrace.eventlog.redis.topology import Topology
from tailrace.eventlog.redis.watched import Watched

__all__ = ["XreadTail"]

log = logging.getLogger("tailrace.tail")

WATCH_SECONDS = 5.0
OPEN_SECONDS = 1.0
STREAMS_PER_READER = 1_000
BLOCK_SECONDS = 1.0
REPLY_SECONDS = 2.0
"""Beyond BLOCK: a reader that is not answered by then connects anew."""
READ_BYTES = 262_144
MAX_COUNT = 100
REST_SECONDS_PER_STREAM = 5e-6
"""Between two reads: a read of 1 000 streams costs the server half a millisecond however little it brings, so let
more come together: at most 200 reads a second, and 5 ms later."""
TURN_RECORDS = 500
ROUND_TICKS = 3
RETRY_SECONDS = 0.5
CONTROL_LIFE_MS = 60_000


class _Followed(Watched):
    """A watched stream and where XREAD is in it."""

    __slots__ = ("at", "behind", "reader")

    def __init__(self, stream: StreamName, keys: StreamKeys) -> None:
        super().__init__(stream, keys, None)
        self.at = b"0-0"
        """The last entry that was read."""
        self.behind: EntryId | None = None
        """`last` when a comparison found that it was not the head; two in a row are a loss."""
        self.reader: _Reader | None = None


class XreadTail:
    """The live end of a Redis log for one hub; see the rules above, and `Tail`.

    Args:
        listener: who is told.
        topology: which server it is; this tail follows it.
        keys: names of keys.
        heads: reads where streams end (`Log.heads`).

    Raises:
        ConfigError: on Redis Cluster, whose streams are on several servers.
    """

    def __init__(
        self,
        listener: TailListener,
        *,
        topology: Topology,
        keys: Keys,
        heads: Callable[[Sequence[StreamName]], Awaitable[Mapping[StreamName, Head]]],
    ) -> None:
        if topology.mode is Mode.CLUSTER:
            raise ConfigError("delivery by xread works on one server or Sentinel; on Redis Cluster use push")
        self.listener = listener
        self._topology = topology
        self._keys = keys
        self._heads = heads
        self._followed: dict[StreamName, _Followed] = {}
        self._session: _Session | None = None
        self._ready = asyncio.Event()
        self._rearrange = asyncio.Event()

    # -- Tail ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Own the connections until cancelled; reconnects for ever. A defect raises and ends its owner."""
        forget = self._topology.on_change(self._rearrange.set)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._topology.follow(), name="tail-topology")
                group.create_task(look_out(self._askers, self.listener), name="tail-look-out")
                group.create_task(self._arrange(group), name="tail-arrange")
        finally:
            forget()
            self._ready.clear()
            self._session = None

    async def watch(self, stream: StreamName) -> Head:
        """Begin to push a stream's records and return its head; see `Tail.watch`.

        Raises:
            LogUnavailable: no answer in time; the stream is not watched.
        """
        followed = self._followed.get(stream)
        if followed is None:
            followed = self._followed[stream] = _Followed(stream, self._keys.of(stream))
        followed.attaching += 1
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                await self._ready.wait()
                session = self._session
                assert session is not None  # noqa: S101 - `_ready` says so
                await session.asker.up.wait()
                tip = (await ask_tips(session.asker, [followed]))[0]
                if not tip:
                    raise LogUnavailable(f"the key of {stream} holds no stream")
                head = (await self._heads((stream,)))[stream]
        except TimeoutError as exc:
            raise LogUnavailable(f"{stream} cannot be watched now: no answer in time") from exc
        finally:
            followed.attaching -= 1
            if followed.attaching == 0 and followed.head is None and self._followed.get(stream) is followed:
                # Not (yet) followed; what is below puts it back.
                del self._followed[stream]
        if followed.head is None:
            self._followed[stream] = followed
            followed.at = tip
            followed.move(head)
            # After this step of the caller, which begins with the head and then takes what came since.
            asyncio.get_running_loop().call_soon(self._begin, followed)
        return head

    def unwatch(self, stream: StreamName) -> None:
        """Stop pushing a stream."""
        followed = self._followed.pop(stream, None)
        if followed is not None:
            followed.holding = True
            if followed.reader is not None:
                followed.reader.remove(followed)

    @property
    def watching(self) -> int:
        """How many streams are watched."""
        return len(self._followed)

    def _begin(self, followed: _Followed) -> None:
        if self._followed.get(followed.stream) is followed and followed.holding:
            followed.holding = False
            if self._session is not None:
                self._session.add(followed)

    # -- the server -------------------------------------------------------------------------------------------

    def _askers(self) -> list[Asker]:
        return [self._session.asker] if self._session is not None else []

    async def _arrange(self, group: asyncio.TaskGroup) -> None:
        """Keep one session with the server that has the streams now."""
        task: asyncio.Task[None] | None = None
        while True:
            self._rearrange.clear()
            try:
                endpoint = await self._topology.endpoint_for(None)
            except LogUnavailable:
                self._topology.lost(self._topology.address.data)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if self._session is None or self._session.endpoint != endpoint:
                if task is not None:
                    task.cancel()
                control = f"{self._keys.prefix}wake:{secrets.token_hex(8)}"
                session = _Session(endpoint, self, control, successor=self._session is not None)
                task = group.create_task(session.run(), name=f"tail {endpoint.label}")
                self._session = session
                self._ready.set()
                for followed in self._followed.values():
                    followed.reader = None
                    if not followed.holding:
                        session.add(followed)
            await self._rearrange.wait()

    def unreachable(self, endpoint: Endpoint) -> None:
        """A connection to the server was lost or cannot be made."""
        self._topology.lost(endpoint)


class _Session:
    """The connections to one server: one for questions, and one per 1 000 streams."""

    def __init__(self, endpoint: Endpoint, tail: XreadTail, control: str, *, successor: bool) -> None:
        self.endpoint = endpoint
        self.tail = tail
        self.asker = Asker(endpoint, self)
        self._control = control
        self._successor = successor
        self._readers: list[_Reader] = []
        self._ring: deque[_Followed] = deque()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep the connections up until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self.asker.run(), name=f"tail-ask {self.endpoint.label}")
                for reader in self._readers:
                    group.create_task(reader.run(), name=f"tail-xread {self.endpoint.label}")
        finally:
            self._group = None

    def add(self, followed: _Followed) -> None:
        """Read a stream, from `at` on."""
        reader = next((one for one in self._readers if len(one.streams) < STREAMS_PER_READER), None)
        if reader is None:
            control = f"{self._control}:{len(self._readers)}".encode()
            reader = _Reader(self, control, interrupted=self._successor)
            self._readers.append(reader)
            if self._group is not None:
                self._group.create_task(reader.run(), name=f"tail-xread {self.endpoint.label}")
        reader.add(followed)
        self._ring.append(followed)

    def unreachable(self, endpoint: Endpoint) -> None:
        """A connection to the server was lost or cannot be made."""
        self.tail.unreachable(endpoint)

    async def tick(self, asker: Asker) -> None:
        """Compare the streams whose turn it is with the log."""
        await asker.ask("PING")
        due: list[_Followed] = []
        for _ in range(-(-len(self._ring) // ROUND_TICKS)):
            followed = self._ring.popleft()
            if not followed.holding and followed.reader is not None and followed.reader.session is self:
                self._ring.append(followed)
                due.append(followed)
        if not due:
            return
        doubtful = [followed for followed in due if followed.head is not None and followed.head.incarnation == 0]
        for watched, head in await ask_changed(asker, due):
            assert isinstance(watched, _Followed)  # noqa: S101 - as were asked
            if self._found(watched, head):
                doubtful.append(watched)
        await self._check_tips(doubtful)

    def _found(self, followed: _Followed, head: Head) -> bool:
        """A stream is not as known. Answers whether its history may be another one."""
        known = followed.head
        if known is None or followed.holding:
            return False
        another = head.state is not known.state or head.incarnation != known.incarnation
        if head.id == followed.last and head.state is StreamState.OPEN:
            followed.move(head)
        elif another or followed.behind == followed.last:
            followed.move(head)
            followed.behind = None
            self.tail.listener.on_head(followed.stream, head)
        else:
            followed.behind = followed.last
        return another

    async def _check_tips(self, streams: Sequence[_Followed]) -> None:
        """Go back where a stream ends before the place where we wait."""
        lost: list[StreamName] = []
        for followed, tip in zip(streams, await ask_tips(self.asker, streams), strict=True):
            if tip and not followed.holding and read_id(tip) < read_id(followed.at):
                followed.at = tip
                lost.append(followed.stream)
                if followed.reader is not None:
                    followed.reader.wake()
        if lost:
            self.tail.listener.on_doubt(lost)


class _Reader:
    """One blocking XREAD."""

    def __init__(self, session: _Session, control: bytes, *, interrupted: bool) -> None:
        self.session = session
        self._interrupted = interrupted
        """Whether there may be more between `at` and the end than a read should answer (rule 3)."""
        self.streams: dict[bytes, _Followed] = {}
        self._control = control
        self._control_at = b"0-0"
        self._woken = False

    def add(self, followed: _Followed) -> None:
        """Read this stream too."""
        followed.reader = self
        self.streams[followed.keys.events] = followed
        self.wake()

    def remove(self, followed: _Followed) -> None:
        """Read it no more; the XREAD that is under way need not end for that."""
        self.streams.pop(followed.keys.events, None)
        followed.reader = None

    def wake(self) -> None:
        """Have the XREAD return and be sent again."""
        connection = self.session.asker.connection
        if not self._woken and connection is not None:
            self._woken = True
            connection.send("XADD", self._control, "MAXLEN", 1, "*", "wake", 1)
            connection.send("PEXPIRE", self._control, CONTROL_LIFE_MS)

    async def run(self) -> None:
        """Keep reading until cancelled."""
        endpoint, pause = self.session.endpoint, Pause()
        while True:
            connection = None
            try:
                connection = await Connection.open(endpoint, deadline=in_seconds(OPEN_SECONDS), name="tailrace-xread")
                if self._interrupted:
                    await self._begin_at_the_ends()
                self._interrupted = True
                while True:
                    await self._read(connection)
                    pause.reset()
                    await asyncio.sleep(len(self.streams) * REST_SECONDS_PER_STREAM)
            except (LogUnavailable, ReplyError) as exc:
                level = logging.ERROR if isinstance(exc, ReplyError) else logging.WARNING
                log.log(level, "reading was interrupted", extra={"node": endpoint.label, "error": str(exc)})
                self.session.unreachable(endpoint)
                await pause.wait()
            finally:
                if connection is not None:
                    connection.abort()

    async def _begin_at_the_ends(self) -> None:
        await self.session.asker.up.wait()
        streams = list(self.streams.values())
        lost = []
        for followed, tip in zip(streams, await ask_tips(self.session.asker, streams), strict=True):
            if not tip:
                log.error("the key holds no stream", extra={"stream": followed.stream})
                self.streams.pop(followed.keys.events, None)
            elif tip != followed.at:
                followed.at = tip
                lost.append(followed.stream)
        if lost:
            self.session.tail.listener.on_doubt(lost)

    async def _read(self, connection: Connection) -> None:
        self._woken = False
        streams = list(self.streams.values())
        largest = max((followed.head.largest for followed in streams if followed.head is not None), default=0)
        command: list[Arg] = ["XREAD", "COUNT", max(1, min(MAX_COUNT, READ_BYTES // max(1, largest)))]
        command += ["BLOCK", round(BLOCK_SECONDS * 1_000), "STREAMS"]
        command += [self._control, *(followed.keys.events for followed in streams)]
        command += [self._control_at, *(followed.at for followed in streams)]
        reply = await connection.call(*command, deadline=in_seconds(BLOCK_SECONDS + REPLY_SECONDS))
        work = 0
        for key, entries in reply or ():
            if key == self._control:
                self._control_at = entries[-1][0]
                continue
            self._give(self.streams.get(key), entries)
            work += len(entries)
            if work >= TURN_RECORDS:
                work = 0
                await asyncio.sleep(0)

    def _give(self, followed: _Followed | None, entries: list[Any]) -> None:
        if followed is None or followed.holding:
            return
        followed.at = entries[-1][0]
        records = [read_entry(followed.stream, entry) for entry in entries]
        own = next((record for record in reversed(records) if not record.foreign), None)
        if own is not None:
            followed.last = own.id
            followed.raw = str(own.id).encode()
        self.session.tail.listener.on_records(followed.stream, records)
