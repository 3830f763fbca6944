"""Plain Pub/Sub: the old channels of applications that move to streams.

Rules of this file
1. At most once, as Redis has it: nothing is sent twice, nothing is kept, nothing is asked for again.
2. Messages of one `Channels` leave in the order of the calls.
3. A `Listener` cannot know what it missed, only when it may have: `on_link(False)` tells that messages may be lost from
   now on, `on_link(True)` that every subscription is there again.
4. A connection proves itself: a probe published on the one must come back on the other. A Pub/Sub connection can stay
   open and deliver nothing, after a fail-over for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from tailrace.errors import AlreadyClosed, LogRefused, LogTimeout, LogUnavailable, OutcomeUnknown
from tailrace.eventlog.redis.asker import OPEN_SECONDS, Pause, in_seconds, probe_number
from tailrace.eventlog.redis.connection import CommandFailed, Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint
from tailrace.eventlog.redis.node import Node
from tailrace.eventlog.redis.topology import Topology, open_topology

__all__ = ["Channels", "Listener"]

log = logging.getLogger("tailrace.pubsub")

PROBE_SECONDS = 1.0
"""How often a listener's connection has to prove itself …"""
PROBE_BACK_SECONDS = 2.0
"""… and how soon, in one of so many tries."""
PROBES = 3
SUBSCRIBE_SECONDS = 5.0
"""For the acknowledgement of all subscriptions of a new connection."""
BATCH = 500


class Channels:
    """Publishes to channels. It connects on first use and belongs to the event loop that uses it."""

    def __init__(self, topology: Topology | str) -> None:
        """Raises: ConfigError for a URL that cannot be used. Nothing is connected yet."""
        self.topology = open_topology(topology) if isinstance(topology, str) else topology
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._node: Node
        self._order: asyncio.Lock
        self._closed = False

    async def publish(self, channel: str | bytes, message: bytes, *, seconds: float) -> int:
        """Send one message and return how many heard it on the server that was asked.

        Cancelled after it was written: it may have been sent.

        Raises:
            LogUnavailable: it was not sent (LogRefused: the login may not). OutcomeUnknown: perhaps; there is no
                receipt, and sending it again may send it twice.
        """
        node = self._open()
        deadline = in_seconds(seconds)
        async with self._order:
            # Nobody who comes later may find the connection first.
            connection = await node.ready(deadline)
            reply = connection.send("PUBLISH", channel, message)
            node.sent()
        try:
            async with asyncio.timeout_at(deadline):
                return int(await reply)
        except TimeoutError:
            raise OutcomeUnknown(f"{connection.endpoint.label} did not answer in time") from None
        except ReplyError as exc:
            raise LogRefused(f"the channel was refused: {exc.code}") from exc
        except CommandFailed as exc:
            if exc.written:
                raise OutcomeUnknown(exc.detail) from exc
            raise

    async def aclose(self) -> None:
        """Give the connection back."""
        self._closed = True
        if self._owner == (os.getpid(), asyncio.get_running_loop()):
            self._node.close()
            await self._node.wait_closed()

    def _open(self) -> Node:
        owner = (os.getpid(), asyncio.get_running_loop())
        if self._closed:
            raise AlreadyClosed("the channels were closed")
        if self._owner != owner:
            # After a fork the old connection is the parent's: it is dropped here without a word on the wire.
            self._owner, self._order = owner, asyncio.Lock()
            self._node = Node(self.topology, self._resolve, name="tailrace-publish")
        return self._node

    async def _resolve(self) -> Endpoint:
        return await self.topology.endpoint_for(None)


class Listener:
    """Hears channels and patterns on one connection. Run `run` as an owned task.

    Args:
        channels: publishes the probes.
        prefix: of the probe's channel.
        on_message: told the channel and the message. Must not raise.
        on_link: told when messages may be lost (False), and when they come (True).
        patterns: what to hear beside single channels.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        prefix: str,
        on_message: Callable[[bytes, bytes], None],
        on_link: Callable[[bool], None],
        patterns: Sequence[str] = (),
    ) -> None:
        self.up = False
        """Whether all subscriptions are there and the last probe came back."""
        self.connections = 0
        """How many were made. Messages may come on one before it is `up`: from where on is told afterwards."""
        self._channels = channels
        self._probe = f"{prefix}probe:{secrets.token_hex(8)}".encode()
        self._on_message = on_message
        self._on_link = on_link
        self._patterns = [pattern.encode() for pattern in patterns]
        self._wanted: dict[bytes, None] = {}
        self._acknowledged: set[bytes] = set()
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._push: Connection | None = None
        self._probe_back = 0
        self._news = asyncio.Event()
        self._defect: BaseException | None = None
        self._refusal = False
        """Whether a refusal was logged, and nothing went well since."""

    async def run(self) -> None:
        """Keep the connection up until cancelled. Raises what `on_message` raised."""
        pause = Pause()
        while True:
            try:
                await self._hold(pause)
            except LogUnavailable as exc:
                log.debug("channels cannot be heard", extra={"error": str(exc)})
                self._fail_waiting(exc)
            finally:
                self._drop()
            if self._defect is not None:
                raise self._defect
            await pause.wait()

    async def subscribe(self, channel: str, *, seconds: float = SUBSCRIBE_SECONDS) -> None:
        """Hear a channel: every message that is published after this returned comes, while the link is up.

        Raises:
            LogUnavailable: not acknowledged in time; it is not wanted any more, unless it was before.
        """
        name = channel.encode()
        before = name in self._wanted
        self.want(channel)
        if name in self._acknowledged:
            return
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(waiting)
        except (TimeoutError, LogUnavailable) as exc:
            if not before:
                self.unsubscribe(channel)
            if isinstance(exc, LogUnavailable):
                raise
            raise LogTimeout("the channel was not acknowledged in time") from None

    def want(self, channel: str) -> None:
        """Hear a channel as soon as that can be."""
        name = channel.encode()
        if name not in self._wanted:
            self._wanted[name] = None
            self._post(b"SUBSCRIBE", [name])

    def unsubscribe(self, channel: str) -> None:
        """Hear a channel no more."""
        name = channel.encode()
        if self._wanted.pop(name, self) is None:
            self._acknowledged.discard(name)
            self._post(b"UNSUBSCRIBE", [name])

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _hold(self, pause: Pause) -> None:
        endpoint = await self._channels.topology.endpoint_for(None)
        deadline = in_seconds(OPEN_SECONDS)
        push = await Connection.open(endpoint, deadline=deadline, on_push=self._received, name="tailrace-channels")
        self._push = push
        self.connections += 1
        await self._subscribe_all(push)
        await self._prove(push, 1)
        self.up, self._refusal = True, False
        self._on_link(True)
        pause.reset()
        number = 1
        while not push.closed.done() and self._defect is None:
            await asyncio.wait([push.closed], timeout=PROBE_SECONDS)
            number += 1
            await self._prove(push, number)

    async def _subscribe_all(self, push: Connection) -> None:
        self._acknowledged.clear()
        wanted = [self._probe, *self._wanted]
        for start in range(0, len(wanted), BATCH):
            push.post("SUBSCRIBE", *wanted[start : start + BATCH])
        if self._patterns:
            push.post("PSUBSCRIBE", *self._patterns)
        expected = {*wanted, *self._patterns}
        await self._until(push, lambda: expected <= self._acknowledged | (expected - self._still_wanted()))

    def _still_wanted(self) -> set[bytes]:
        return {self._probe, *self._patterns, *self._wanted}

    async def _prove(self, push: Connection, number: int) -> None:
        """Publish a number and see it come back.

        Raises:
            LogUnavailable: it did not.
        """
        # Once is no proof: a loop that was busy for seconds would end a sound connection, and lose what comes then.
        for _ in range(PROBES):
            self._probe_back = 0
            with contextlib.suppress(LogUnavailable, OutcomeUnknown):
                await self._channels.publish(self._probe, b"%d" % number, seconds=PROBE_BACK_SECONDS)
                await self._until(push, lambda: self._probe_back == number, seconds=PROBE_BACK_SECONDS)
                return
            if push.closed.done() or self._defect is not None:
                break
        raise LogUnavailable("a probe did not come back")

    async def _until(
        self, push: Connection, reached: Callable[[], bool], *, seconds: float = SUBSCRIBE_SECONDS
    ) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not reached() and not push.closed.done() and self._defect is None:
                    self._news.clear()
                    news: asyncio.Future[Any] = asyncio.ensure_future(self._news.wait())
                    try:
                        await asyncio.wait((news, push.closed), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        news.cancel()
        if not reached():
            raise LogUnavailable("the connection of the channels is not sound")

    def _drop(self) -> None:
        push, self._push = self._push, None
        if push is not None:
            push.abort()
        self._acknowledged.clear()
        if self.up:
            self.up = False
            self._on_link(False)

    def _post(self, verb: bytes, names: list[bytes]) -> None:
        if self._push is not None:
            self._push.post(verb, *names)

    def _received(self, reply: Any) -> int:
        if not isinstance(reply, list):
            self._refused(reply)
            return 1
        kind = reply[0]
        try:
            if kind in (b"message", b"pmessage"):
                channel, message = reply[-2], reply[-1]
                if channel == self._probe:
                    self._probe_back = probe_number(message, self._probe_back)
                    self._news.set()
                else:
                    self._on_message(channel, message)
            elif kind in (b"subscribe", b"psubscribe"):
                self._acknowledge(reply[1])
        except Exception as exc:  # the owner's defect must end its owner, not only this connection
            self._defect = self._defect or exc
            self._news.set()
        return 1

    def _acknowledge(self, name: bytes) -> None:
        if name in self._wanted or name == self._probe or name in self._patterns:
            self._acknowledged.add(name)  # else it was given up meanwhile, and is asked for anew the next time
        self._news.set()
        waiting = self._waiting.pop(name, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _refused(self, error: Any) -> None:
        code = error.code if isinstance(error, ReplyError) else "ERR"
        if not self._refusal:
            log.warning("a channel was refused", extra={"error": code})
        self._refusal = True
        self._fail_waiting(LogRefused(f"the channel was refused: {code}"))
        if self._push is not None:
            self._push.abort()

    def _fail_waiting(self, error: LogUnavailable) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waited may be gone
