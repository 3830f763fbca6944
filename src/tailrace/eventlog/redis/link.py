"""A tail's two connections to one node: one for pushes, one for questions.

Rules of this file
1. Neither connection retries or reconnects by itself; `run` opens them again, with jittered back-off, until cancelled.
2. Acknowledgements come in the order of the commands, so each is matched to its own command; an acknowledgement that
   matches none is the server's own word (an unasked `sunsubscribe`: the slot has moved away).
3. A probe is published through the question connection and comes back through the push connection. Redis writes in
   order, so everything published before it has then been received: it is a barrier. A probe that does not come back
   ends the push connection.
4. Sharded Pub/Sub is used exactly when the node is in a Cluster and is 7.0 or newer. The append script decides by the
   same rule, on the node that executes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.asker import OPEN_SECONDS, Asker, AskerOwner, Pause, in_seconds, probe_number
from tailrace.eventlog.redis.connection import Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint

__all__ = ["Link", "LinkOwner"]

log = logging.getLogger("tailrace.tail")

PROBE_SECONDS = 0.5
"""A probe comes back this soon after its PUBLISH was answered, or something is wrong …"""
BACKLOG_SECONDS = 3.0
"""… unless pushes keep coming in: then it waits in line behind them."""
STEADY_SECONDS = 1.0
"""A push connection that was up so long is replaced at once when it is lost; others wait longer and longer."""
SUBSCRIBE_SECONDS = 5.0
"""For the acknowledgement of one batch."""
BATCH = 500
_MESSAGES = (b"message", b"smessage")
_SUBSCRIBED = (b"subscribe", b"ssubscribe")


class LinkOwner(AskerOwner, Protocol):
    """What a link tells the tail."""

    def received(self, channel: bytes, message: bytes) -> int:
        """A push. Returns how much work it was, in records."""

    def subscribed(self, link: Link, channel: bytes) -> None:
        """From here on the channel's pushes come."""

    def refused(self, link: Link, channels: Sequence[bytes], error: ReplyError) -> None:
        """The server does not let us subscribe."""

    def moved_away(self, link: Link, channel: bytes) -> None:
        """The server ended the subscription: the slot is on another node now."""


class Link(Asker):
    """See the rules above."""

    def __init__(self, endpoint: Endpoint, owner: LinkOwner, *, cluster: bool, probe: bytes) -> None:
        super().__init__(endpoint, owner)
        self._tail = owner
        self._cluster = cluster
        self._probe = probe
        self._probing = False
        """Whether the probe's own subscription was acknowledged."""
        self._probe_sent = 0
        self._probe_back = 0
        self._barrier: asyncio.Future[None] | None = None
        self._wanted: dict[bytes, None] = {}
        self._push: Connection | None = None
        self._sharded = False
        self._ops: deque[tuple[int, bytes, bytes]] = deque()
        self._commands = 0
        self._unsettled: dict[bytes, int] = {}
        """Operations under way, by channel."""
        self._settled: asyncio.Future[None] | None = None
        self._fresh: dict[bytes, None] = {}
        self._defect: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Keep both connections up until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hold_push(), name=f"tail-push {self.endpoint.label}")
            group.create_task(super().run(), name=f"tail-ask {self.endpoint.label}")

    def is_subscribed(self, channel: bytes) -> bool:
        """Whether the channel's pushes come now."""
        return (
            self._push is not None
            and channel in self._wanted
            and channel not in self._fresh
            and channel not in self._unsettled
        )

    def subscribe(self, channel: bytes) -> None:
        """Want a channel; `subscribed` follows, again after each reconnect."""
        if channel in self._wanted:
            return
        self._wanted[channel] = None
        if self._push is not None:
            if not self._fresh:
                asyncio.get_running_loop().call_soon(self._subscribe_fresh)
            self._fresh[channel] = None

    def unsubscribe(self, channels: Iterable[bytes]) -> None:
        """Want these channels no more."""
        gone = [channel for channel in channels if channel in self._wanted]
        for channel in gone:
            del self._wanted[channel]
        known = [channel for channel in gone if self._fresh.pop(channel, self) is self]
        self._send(b"unsubscribe", known, sharded=self._sharded)

    # -- pushes ----------------------------------------------------------------------------------------------

    async def _hold_push(self) -> None:
        pause = Pause()
        while True:
            try:
                deadline = in_seconds(OPEN_SECONDS)
                push = await Connection.open(
                    self.endpoint, deadline=deadline, on_push=self._received, name="tailrace-push"
                )
            except LogUnavailable as exc:
                log.debug("no push connection", extra={"node": self.endpoint.label, "error": str(exc)})
                self._tail.unreachable(self.endpoint)
                await pause.wait()
                continue
            try:
                self._push = push
                self._sharded = self._cluster and push.version >= (7, 0, 0)
                await self._resubscribe()
                ends = (push.closed, self._defect)
                ended, _ = await asyncio.wait(ends, timeout=STEADY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not ended:
                    pause.reset()
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self._defect.done():
                    await self._defect
            except LogUnavailable as exc:
                log.warning("cannot subscribe", extra={"node": self.endpoint.label, "error": str(exc)})
            finally:
                push.abort()
                self._forget_push()
            log.warning("push connection lost", extra={"node": self.endpoint.label})
            self._tail.unreachable(self.endpoint)
            await pause.wait()

    def _forget_push(self) -> None:
        self._push = None
        self._probing = False
        self._ops.clear()
        self._unsettled.clear()
        self._fresh.clear()
        if self._barrier is not None and not self._barrier.done():
            self._barrier.cancel()
        if self._settled is not None and not self._settled.done():
            self._settled.cancel()
        self._settled = None

    async def _resubscribe(self) -> None:
        self._fresh.clear()
        self._fresh.update(self._wanted)
        push = self._push
        assert push is not None  # noqa: S101 - set by the only caller
        self._send(b"subscribe", [self._probe], sharded=False)
        while True:
            batch = list(self._fresh)[:BATCH]
            for channel in batch:
                del self._fresh[channel]
            self._send(b"subscribe", batch, sharded=self._sharded)
            if self._ops:
                self._settled = asyncio.get_running_loop().create_future()
                await asyncio.wait(
                    (self._settled, push.closed), timeout=SUBSCRIBE_SECONDS, return_when="FIRST_COMPLETED"
                )
                settled, self._settled = self._settled, None
                if not settled.done():
                    raise LogUnavailable("subscriptions were not acknowledged")
            if not self._fresh:
                return

    def _subscribe_fresh(self) -> None:
        """What was wanted in one loop turn leaves together."""
        if self._push is None or self._settled is not None:
            return  # a resubscription is under way and takes them too
        fresh = list(self._fresh)
        self._fresh.clear()
        for start in range(0, len(fresh), BATCH):
            self._send(b"subscribe", fresh[start : start + BATCH], sharded=self._sharded)

    def _send(self, verb: bytes, channels: list[bytes], *, sharded: bool) -> None:
        push = self._push
        if not channels or push is None:
            return
        op = b"s" + verb if sharded else verb
        # The channels of one sharded command must be of one slot: one command each, all in one write.
        for group in [[channel] for channel in channels] if sharded else [channels]:
            self._commands += 1
            push.post(op, *group)
            for channel in group:
                self._ops.append((self._commands, op, channel))
                self._unsettled[channel] = self._unsettled.get(channel, 0) + 1

    def _settle(self) -> bytes:
        """The oldest operation is over."""
        channel = self._ops.popleft()[2]
        left = self._unsettled[channel] - 1
        if left:
            self._unsettled[channel] = left
        else:
            del self._unsettled[channel]
        return channel

    def _received(self, reply: Any) -> int:
        if type(reply) is list:
            kind = reply[0]
            if kind in _MESSAGES:
                channel = reply[1]
                try:
                    if channel != self._probe:
                        return self._tail.received(channel, reply[2])
                    self._probe_back = probe_number(reply[2], self._probe_back)
                    if self._barrier is not None and self._probe_back >= self._probe_sent and not self._barrier.done():
                        self._barrier.set_result(None)
                except Exception as exc:  # the owner's defect must end its owner, not only this connection
                    if not self._defect.done():
                        self._defect.set_exception(exc)
                return 1
            self._acknowledged(kind, reply[1])
        else:
            self._refused(reply)
        if self._settled is not None and not self._ops and not self._settled.done():
            self._settled.set_result(None)
        return 1

    def _acknowledged(self, kind: bytes, channel: bytes) -> None:
        if self._ops and self._ops[0][1:] == (kind, channel):
            self._settle()
            if channel == self._probe:
                self._probing = True
            elif kind in _SUBSCRIBED and self.is_subscribed(channel):
                self._tail.subscribed(self, channel)
        elif channel in self._wanted:
            del self._wanted[channel]
            self._tail.moved_away(self, channel)

    def _refused(self, error: Any) -> None:
        if not isinstance(error, ReplyError) or not self._ops:
            self._end_push("an answer that was not asked for")
            return
        command = self._ops[0][0]
        channels = []
        while self._ops and self._ops[0][0] == command:
            channels.append(self._settle())
        for channel in channels:
            self._wanted.pop(channel, None)
        self._tail.refused(self, channels, error)
        if self._probe in channels:
            self._end_push(f"the probe's channel was refused: {error.code}")

    def _end_push(self, why: str) -> None:
        log.warning("push connection is not sound", extra={"node": self.endpoint.label, "why": why})
        if self._push is not None:
            self._push.abort()

    # -- barrier ---------------------------------------------------------------------------------------------

    async def barrier(self) -> bool:
        """Wait until every push that the node sent before now was received. False: pushes do not come now.

        Raises: as `ask`.
        """
        push = self._push if self._probing else None
        self._probe_sent += 1
        receivers = await self.ask("PUBLISH", self._probe, self._probe_sent)
        if push is None or push is not self._push:
            return False
        await self._wait_back(push, receivers)
        return push is self._push and self._probe_back >= self._probe_sent

    async def _wait_back(self, push: Connection, receivers: int) -> None:
        if self._probe_back >= self._probe_sent:
            return
        loop = asyncio.get_running_loop()
        self._barrier = loop.create_future()
        started = loop.time()
        try:
            while push is self._push and self._probe_back < self._probe_sent:
                if receivers:
                    await asyncio.wait(
                        (self._barrier, push.closed), timeout=PROBE_SECONDS, return_when="FIRST_COMPLETED"
                    )
                now = loop.time()
                coming = receivers and now - push.last_received < PROBE_SECONDS and now - started < BACKLOG_SECONDS
                if push is self._push and self._probe_back < self._probe_sent and not coming:
                    self._end_push("a probe did not come back")
                    return
        finally:
            self._barrier = None
