"""The push tail: pushes by Pub/Sub, proof by asking the log.

Rules of this file
1. A stream is attached in this order: subscription acknowledged, head read, pushes that came meanwhile released.
2. What a stream's pushes reached (`last`) is compared with the log about once a second. A difference that is still
   there after a barrier (link.py rule 3) is told as `on_head`: a lost last record, a closed or expired stream.
3. After any interruption every stream is subscribed again and then compared, before its next turn.
4. Holes between pushes are the listener's to find: it has the chain. A message that cannot be read is a doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tailrace.core.event import StreamState
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.errors import LogUnavailable
from tailrace.eventlog.base import TailListener
from tailrace.eventlog.redis.asker import Asker, look_out
from tailrace.eventlog.redis.changes import ask_changed
from tailrace.eventlog.redis.connection import ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint, Mode
from tailrace.eventlog.redis.keys import Keys
from tailrace.eventlog.redis.link import Link
from tailrace.eventlog.redis.topology import Topology
from tailrace.eventlog.redis.watched import Watched
from tailrace.eventlog.redis.wire import decode

__all__ = ["PushTail"]

log = logging.getLogger("tailrace.tail")

WATCH_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""An unwatched stream stays subscribed this long: a page refresh comes back to it."""
KEPT_BYTES = 1_048_576
"""Pushes kept for a stream whose head is not known yet; more than that becomes a doubt."""
ROUND_TICKS = 3
"""Every stream is compared once in so many ticks."""
HOT_STREAMS = 20_000
HOT_STREAMS_CLUSTER = 5_000
"""A node with more streams compares those that nothing was pushed to lately only every COLD_ROUND_TICKS."""
COLD_TICKS = 240
COLD_ROUND_TICKS = 40
RETRY_SECONDS = 0.5


class PushTail:
    """The live end of a Redis log for one hub; see the rules above, and `Tail`.

    Args:
        listener: who is told.
        topology: which nodes there are; this tail follows it.
        keys: names of keys and channels.
        heads: reads where streams end (`Log.heads`).
    """

    def __init__(
        self,
        listener: TailListener,
        *,
        topology: Topology,
        keys: Keys,
        heads: Callable[[Sequence[StreamName]], Awaitable[Mapping[StreamName, Head]]],
    ) -> None:
        self._listener = listener
        self._topology = topology
        self._keys = keys
        self._heads = heads
        self._probe = f"{keys.prefix}probe:{secrets.token_hex(8)}".encode()
        self._watched: dict[StreamName, Watched] = {}
        self._by_channel: dict[bytes, Watched] = {}
        self._links: dict[Endpoint, tuple[Link, asyncio.Task[None]]] = {}
        self._rings: dict[Link, deque[Watched]] = {}
        self._urgent: dict[Link, dict[Watched, None]] = {}
        self._dropped: dict[Watched, None] = {}
        self._running = asyncio.Event()
        self._rearrange = asyncio.Event()
        self._tick = 0
        cluster = topology.mode is Mode.CLUSTER
        self._hot = HOT_STREAMS_CLUSTER if cluster else HOT_STREAMS

    # -- Tail ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Own the connections until cancelled; reconnects for ever. A defect raises and ends its owner."""
        forget = self._topology.on_change(self._rearrange.set)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._topology.follow(), name="tail-topology")
                group.create_task(self._arrange(group), name="tail-arrange")
                links = self._open_links
                group.create_task(look_out(links, self._listener, self._forget_dropped), name="tail-look-out")
                self._running.set()
        finally:
            self._running.clear()
            forget()
            self._links.clear()
            self._rings.clear()
            self._urgent.clear()
            for watched in tuple(self._watched.values()):
                watched.link = None
                watched.fail(LogUnavailable("the tail has ended"))

    async def watch(self, stream: StreamName) -> Head:
        """Begin to push a stream's records and return its head; see `Tail.watch`.

        Cancelled: the stream is not watched, unless somebody else waits for it too.

        Raises:
            LogUnavailable: not acknowledged in time; the stream is not watched.
        """
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                await self._running.wait()
                slot = self._topology.slot(self._keys.of(stream).push)
                await self._topology.endpoint_for(slot)
                watched = self._want(stream, slot)
                try:
                    await watched.wait_subscribed()
                    head = (await self._heads((stream,)))[stream]
                except BaseException:
                    watched.attaching -= 1
                    if watched.head is None and watched.attaching == 0:
                        self.unwatch(stream)
                    raise
                watched.attaching -= 1
        except TimeoutError as exc:
            raise LogUnavailable(f"the subscription to {stream} was not acknowledged in time") from exc
        self._dropped.pop(watched, None)
        watched.dropped_at = None
        if watched.head is None:
            # After this step of the caller, which begins with the head and then takes what came since.
            watched.head = head
            asyncio.get_running_loop().call_soon(self._release, watched)
        return head

    def unwatch(self, stream: StreamName) -> None:
        """Stop pushing a stream."""
        watched = self._watched.get(stream)
        if watched is not None and watched.dropped_at is None:
            watched.drop(asyncio.get_running_loop().time())
            self._dropped[watched] = None

    @property
    def watching(self) -> int:
        """How many streams are watched."""
        return len(self._watched) - len(self._dropped)

    # -- streams ---------------------------------------------------------------------------------------------

    def _want(self, stream: StreamName, slot: int | None) -> Watched:
        watched = self._watched.get(stream)
        if watched is None:
            watched = Watched(stream, self._keys.of(stream), slot)
            self._watched[stream] = self._by_channel[watched.keys.push] = watched
        watched.attaching += 1
        if watched.dropped_at is not None:
            del self._dropped[watched]
            watched.dropped_at = None
        self._place(watched)
        return watched

    def _place(self, watched: Watched) -> None:
        """Subscribe a stream where it is now."""
        endpoint = self._topology.known(watched.slot)
        link = self._links[endpoint][0] if endpoint is not None and endpoint in self._links else None
        if link is None:
            self._rearrange.set()
            return
        if watched.link is not link:
            if watched.link is not None:
                watched.link.unsubscribe((watched.keys.push,))
            watched.link = link
            self._rings[link].append(watched)
        if link.is_subscribed(watched.keys.push):
            watched.subscribed()
        else:
            link.subscribe(watched.keys.push)

    def _release(self, watched: Watched) -> None:
        """The head is known and the listener has it: hand on what came meanwhile."""
        messages, overflow, head = watched.attach()
        if head is None:
            return
        for message in messages:
            self.received(watched.keys.push, message)
        if watched.last is not None and watched.last < head.id:
            watched.move(head)  # all of these were in the head already
        if overflow:
            self._listener.on_doubt((watched.stream,))

    def _forget_dropped(self) -> None:
        if not self._dropped:
            return
        before = asyncio.get_running_loop().time() - GRACE_SECONDS
        by_link: dict[Link, list[bytes]] = {}
        for watched in [one for one in self._dropped if one.dropped_at is not None and one.dropped_at < before]:
            del self._dropped[watched], self._watched[watched.stream], self._by_channel[watched.keys.push]
            if watched.link is not None:
                by_link.setdefault(watched.link, []).append(watched.keys.push)
                watched.link = None
        for link, channels in by_link.items():
            link.unsubscribe(channels)

    # -- nodes -----------------------------------------------------------------------------------------------

    async def _arrange(self, group: asyncio.TaskGroup) -> None:
        """Keep one link to each node, and each stream on its node."""
        while True:
            self._rearrange.clear()
            try:
                nodes = await self._topology.nodes()
            except LogUnavailable:
                self._topology.lost(self._topology.address.data)
                await self._wait_rearrange(RETRY_SECONDS)
                continue
            for endpoint in nodes:
                if endpoint not in self._links:
                    self._open_link(endpoint, group)
            for watched in tuple(self._watched.values()):
                self._place(watched)
            for endpoint in set(self._links) - set(nodes):
                self._end_link(endpoint)
            # A storm of changes is worked off in rounds, not one by one.
            await asyncio.sleep(0.05)
            await self._wait_rearrange(None)

    async def _wait_rearrange(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rearrange.wait()

    def _open_link(self, endpoint: Endpoint, group: asyncio.TaskGroup) -> None:
        link = Link(endpoint, self, cluster=self._topology.mode is Mode.CLUSTER, probe=self._probe)
        self._rings[link] = deque()
        self._urgent[link] = {}
        self._links[endpoint] = (link, group.create_task(link.run(), name=f"tail {endpoint.label}"))

    def _open_links(self) -> list[Link]:
        return [link for link, _ in self._links.values()]

    def _end_link(self, endpoint: Endpoint) -> None:
        link, task = self._links.pop(endpoint)
        task.cancel()
        ring = self._rings.pop(link)
        del self._urgent[link]
        for watched in ring:
            if watched.link is link:
                watched.link = None
                self._place(watched)

    # -- what a link tells (LinkOwner) -------------------------------------------------------------------------

    def received(self, channel: bytes, message: bytes) -> int:
        """A push. Returns how many records it held."""
        watched = self._by_channel.get(channel)
        if watched is None or watched.dropped_at is not None:
            return 1
        if watched.holding:
            watched.keep(message, KEPT_BYTES)
            return 1
        try:
            records = decode(watched, message)
        except ValueError:
            log.warning("a push cannot be read", extra={"stream": watched.stream})
            self._listener.on_doubt((watched.stream,))
            return 1
        if records:
            self._listener.on_records(watched.stream, records)
        if watched.skipped:
            # The listener reads the page that holds the large record: one read for the whole process.
            watched.skipped = False
            self._listener.on_doubt((watched.stream,))
        if watched.state:
            watched.state = False
            self._compare_soon(watched)
        return len(records) or 1

    def subscribed(self, link: Link, channel: bytes) -> None:
        """From here on the channel's pushes come."""
        watched = self._by_channel.get(channel)
        if watched is not None and watched.link is link:
            watched.subscribed()
            self._compare_soon(watched)

    def refused(self, link: Link, channels: Sequence[bytes], error: ReplyError) -> None:
        """The server does not let us subscribe."""
        self._topology.redirected(error, link.endpoint)
        if error.code != "MOVED":
            log.error("a subscription was refused", extra={"node": link.endpoint.label, "code": error.code})
            for channel in channels:
                if channel in self._by_channel:
                    self._by_channel[channel].fail(LogUnavailable(f"the server refuses the channel: {error.code}"))
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._rearrange.set)

    def moved_away(self, link: Link, channel: bytes) -> None:
        """The slot is on another node now."""
        self._topology.lost(link.endpoint)
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._rearrange.set)

    def unreachable(self, endpoint: Endpoint) -> None:
        """A connection to the node was lost or cannot be made."""
        self._topology.lost(endpoint)

    async def tick(self, asker: Asker) -> None:
        """Compare the streams whose turn it is with the log."""
        link = asker
        assert isinstance(link, Link)  # noqa: S101 - this tail's askers are links
        due = self._due(link)
        was = [(watched, watched.last) for watched in due]
        try:
            found = await ask_changed(link, due)
        except ReplyError:
            # It answers, but not to this: the next tick asks again, instead of taking another answer for a good sign.
            self._urgent.get(link, {}).update(dict.fromkeys(due))
            raise
        pushes_come = await link.barrier()
        before = dict(was) if found else {}
        for watched, head in found:
            self._found(watched, head, moving=pushes_come and watched.last != before[watched])

    def _due(self, link: Link) -> list[Watched]:
        self._tick += 1
        ring, urgent = self._rings.get(link, deque()), self._urgent.get(link, {})
        due = [watched for watched in urgent if watched.link is link and not watched.holding]
        urgent.clear()
        crowded = len(ring) > self._hot
        quota = -(-self._hot // ROUND_TICKS)
        for _ in range(len(ring) if crowded else -(-len(ring) // ROUND_TICKS)):
            watched = ring.popleft()
            if watched.link is not link:
                continue
            ring.append(watched)
            if watched.holding or watched.dropped_at is not None:
                continue
            if crowded and not watched.is_due(self._tick, COLD_TICKS, COLD_ROUND_TICKS):
                continue
            due.append(watched)
            quota -= 1
            if quota == 0:
                break
        return due

    def _found(self, watched: Watched, head: Head, *, moving: bool) -> None:
        known = watched.head
        if known is None or watched.dropped_at is not None or watched.holding:
            return
        if head.id == watched.last and head.state is StreamState.OPEN:
            watched.move(head)  # the pushes brought everything; only what we knew of its life was old
            return
        if moving and head.state is StreamState.OPEN:
            watched.head = head  # pushes are on their way; the next comparison tells whether all of them came
            return
        watched.move(head)
        self._listener.on_head(watched.stream, head)

    def _compare_soon(self, watched: Watched) -> None:
        link = watched.link
        if link is not None and not watched.holding:
            self._urgent[link][watched] = None
            link.wake.set()
