"""Appends: everything of a loop turn leaves together, in one script call per stream, and is stored once.

Rules of this file
1. An append fails as "not stored" only when that is certain; otherwise as `OutcomeUnknown` with a receipt.
2. Only a numbered call is ever sent again, with its number and its events unchanged.
3. One timer serves all deadlines; nothing is made per event but its caller's future.
4. What waits is bounded: over `MAX_WAITING_BYTES` appends fail at once.
5. A caller that goes away harms nobody: what was not sent is not sent, what was sent stays as it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from tailrace.core.codec import Prepared
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.errors import AlreadyClosed, LogRefused, LogTimeout, LogUnavailable
from tailrace.eventlog.base import Appended
from tailrace.eventlog.receipt import Receipt
from tailrace.eventlog.redis.connection import CommandFailed, ConnectionLost, ReplyError
from tailrace.eventlog.redis.fields import pack
from tailrace.eventlog.redis.keys import Keys
from tailrace.eventlog.redis.lane import Batch, Call, Lane, Policy, append_words
from tailrace.eventlog.redis.node import Node
from tailrace.eventlog.redis.reply import MOVING, NOT_NOW, check_clock, error_for, read_appended, rejection, server_word
from tailrace.eventlog.redis.routes import Routes
from tailrace.eventlog.redis.scripts import load
from tailrace.eventlog.redis.sweeper import Sweeper

__all__ = ["MAX_WAITING_BYTES", "Publisher"]

MAX_WAITING_BYTES = 64 * 1_048_576
MAX_LANES = 16_384
AGAIN_SECONDS = 0.05
"""Pause before a call goes again that the server put off."""


class Publisher:
    """See the rules above. Belongs to one event loop."""

    def __init__(self, routes: Routes, keys: Keys, kinds: Kinds) -> None:
        self._routes = routes
        self._keys = keys
        self._kinds = kinds
        self._script = load("append")
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[StreamName, Lane] = {}
        self._active: set[Lane] = set()
        self._turn: list[Lane] = []
        self._waiting_bytes = 0
        self._sweeper = Sweeper(self._loop, self._sweep)
        self._policies: dict[str, Policy] = {}
        self._closed = False
        routes.on_up = self._node_up
        routes.on_down = self._node_down

    # -- callers ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        stream: StreamName,
        events: Sequence[Prepared],
        size: int,
        *,
        deadline: float,
        expected_seq: int | None = None,
        owner_epoch: int | None = None,
        close: bool = False,
    ) -> asyncio.Future[list[Appended]]:
        """Have checked events appended; the future is the answer.

        Raises:
            LogUnavailable: refused at once; nothing is sent.
        """
        lane = self._lanes.get(stream) or self._make_lane(stream)
        lane.used = True
        future: asyncio.Future[list[Appended]] = self._loop.create_future()
        self._admit(lane, Call(events, size, deadline, future, expected_seq, owner_epoch, close))
        return future

    def settle(self, receipt: Receipt, *, deadline: float) -> asyncio.Future[list[Appended]]:
        """Send a numbered call, perhaps again; the answer is for the whole call.

        Raises:
            LogUnavailable: refused at once; nothing is sent this time.
        """
        lane = self._new_lane(receipt.stream)
        lane.pid, lane.n, lane.attempted = receipt.pid, receipt.n - 1, receipt.attempted
        future: asyncio.Future[list[Appended]] = self._loop.create_future()
        size = sum(len(event.data) for event in receipt.events)
        call = Call(receipt.events, size, deadline, future, receipt.expected_seq, receipt.owner_epoch, receipt.close)
        call.alone = True
        self._admit(lane, call)
        return future

    def _admit(self, lane: Lane, call: Call) -> None:
        if self._closed:
            raise AlreadyClosed("the log was closed")
        node = lane.node
        if node is not None and node.down is not None and not lane.attempted:
            if lane.slot is None:
                raise node.unavailable()
            lane.node = None  # another server may have taken over
        if self._waiting_bytes + call.size > MAX_WAITING_BYTES:
            raise LogUnavailable("too much waits to be appended", retry_after=0.5)
        self._waiting_bytes += call.size
        lane.waiting.append(call)
        self._active.add(lane)
        if lane.batch is None and not lane.queued:
            lane.queued = True
            if not self._turn:
                self._loop.call_soon(self._flush)
            self._turn.append(lane)
        self._sweeper.start()

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is under way any more, at most so long; then give the rest up."""
        self._closed = True
        futures = [call.future for lane in self._active for call in lane.calls()]
        if futures:
            await asyncio.wait(futures, timeout=seconds)
        for lane in list(self._active):
            self._give_up(lane, LogUnavailable("the log was closed"))
            if lane.batch is not None:
                self._lose(lane, lane.batch)
        self._sweeper.stop()

    # -- lanes ------------------------------------------------------------------------------------------------------

    def _make_lane(self, stream: StreamName) -> Lane:
        if len(self._lanes) >= MAX_LANES:
            # Those that were used since the last time stay; a name is cheap to make again.
            self._lanes = {name: lane for name, lane in self._lanes.items() if lane.used or not lane.idle}
            for lane in self._lanes.values():
                lane.used = False
        lane = self._lanes[stream] = self._new_lane(stream)
        return lane

    def _new_lane(self, stream: StreamName) -> Lane:
        keys = self._keys.of(stream)
        slot = self._routes.slot(keys.events)
        kind = self._kinds.of(stream)
        policy = self._policies.get(kind.name)
        if policy is None:
            policy = self._policies[kind.name] = Policy.of(kind)
        return Lane(stream, keys, slot, policy, self._routes.known(slot))

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        for lane in turn:
            lane.queued = False
            self._start(lane)

    def _start(self, lane: Lane) -> None:
        """Send what waits, if the way is free and nothing is under way: one that was put off may be late."""
        if lane.batch is not None:
            return
        node = lane.node
        if node is None:
            self._find(lane)
            return
        if node.connection is None:
            node.want()
            if node.down is not None:
                self._give_up(lane, node.unavailable())
            return
        batch = lane.next_batch()
        self._waiting_bytes -= lane.skipped
        lane.skipped = 0
        if batch is None:
            self._active.discard(lane)
            return
        lane.batch = batch
        batch.maybe_sent = lane.attempted
        batch.labels = pack([event for call in batch.calls for event in call.events], batch.args)
        self._waiting_bytes -= batch.size
        self._send(lane, batch, node)

    def _find(self, lane: Lane) -> None:
        if not lane.finding:
            lane.finding = True
            self._routes.find(lane.slot, partial(self._found, lane))

    def _found(self, lane: Lane, node: Node | LogUnavailable) -> None:
        lane.finding = False
        if isinstance(node, LogUnavailable):
            self._give_up(lane, node)
            return
        if node.down is not None:
            node.want()
            self._give_up(lane, node.unavailable())
            return
        lane.node = node
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        if lane.batch is None:
            self._start(lane)
        else:
            self._again(lane, lane.batch)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send(self, lane: Lane, batch: Batch, node: Node, *, whole: bool = False, asking: bool = False) -> None:
        connection = node.connection
        if connection is None:
            node.want()  # `_node_up` goes on
            return
        script = self._script.text if whole else self._script.sha
        words = append_words(lane, batch, connection.version)
        future = connection.send("EVAL" if whole else "EVALSHA", script, *words, asking=asking)
        batch.sent = True
        node.sent()
        future.add_done_callback(partial(self._answered, lane, batch, node))

    def _again(self, lane: Lane, batch: Batch, *, asking: bool = False) -> None:
        """Send a batch another time, unless it was given up meanwhile."""
        if batch.over or batch.sent or lane.batch is not batch:
            return
        if lane.node is None:
            self._find(lane)
        else:
            self._send(lane, batch, lane.node, asking=asking)

    def _answered(self, lane: Lane, batch: Batch, node: Node, future: asyncio.Future[Any]) -> None:
        batch.sent = False
        if batch.over:
            return
        error = future.exception()
        if error is None:
            self._settle(lane, batch, future.result())
        elif isinstance(error, CommandFailed):
            batch.maybe_sent = batch.maybe_sent or error.written
            self._failed(lane, batch, node, error)
        elif isinstance(error, ReplyError):
            self._error_reply(lane, batch, node, error)
        else:
            self._end(lane, batch, error)

    def _failed(self, lane: Lane, batch: Batch, node: Node, error: CommandFailed) -> None:
        """No answer. The same numbered call goes again, as soon as there is a way and until its deadline."""
        if node.connection is not None and isinstance(error, ConnectionLost):
            self._again(lane, batch)
        elif node.connection is not None:
            self._loop.call_later(AGAIN_SECONDS, self._again, lane, batch)
        elif node.down is not None:
            self._give_up(lane, node.unavailable())
        else:
            node.want()  # `_node_up` sends it again, or `_node_down` or its deadline ends it

    def _error_reply(self, lane: Lane, batch: Batch, node: Node, error: ReplyError) -> None:
        word = server_word(error.message)
        if word == "NOSCRIPT":
            # Loads it too. The lane's other calls wait behind this one, so the order stays.
            self._send(lane, batch, node, whole=True)
        elif word in MOVING:
            target = self._routes.redirected(error, node)
            if word == "MOVED" or target is None:
                lane.node = target
                self._again(lane, batch)
            else:
                self._ask(lane, batch, target)
        elif word in NOT_NOW or (word == "READONLY" and self._routes.fails_over):
            self._routes.redirected(error, node)
            if lane.slot is not None:
                lane.node = None
            self._loop.call_later(AGAIN_SECONDS * random.uniform(0.5, 1.5), self._again, lane, batch)
        else:
            self._end(lane, batch, error_for(error.message) or LogRefused(f"the log refused: {error.message[:200]}"))

    def _ask(self, lane: Lane, batch: Batch, target: Node) -> None:
        if target.connection is not None:
            self._send(lane, batch, target, asking=True)
        else:
            target.want()
            self._loop.call_later(AGAIN_SECONDS, self._again, lane, batch)

    def _settle(self, lane: Lane, batch: Batch, reply: list[Any]) -> None:
        status = reply[0]
        if status == b"ok" or status == b"dup":
            # Only who asks for a call again is told that it was stored before; our own second try is no duplicate.
            answer = read_appended(reply, batch.count, duplicate=lane.attempted and status == b"dup")
            batch.answer(answer)
            check_clock(lane.stream, reply)
            self._done(lane)
        elif status == b"refused":
            self._end(lane, batch, error_for(reply[1].decode()) or LogRefused(reply[1].decode()[:200]))
        elif status == b"unknown":
            self._unknown_producer(lane, batch)
        elif len(batch.calls) > 1 and status == b"conflict":
            # One caller's uid must not fail the others: each goes alone.
            lane.put_back(batch, alone=True)
            self._waiting_bytes += batch.size
            self._done(lane)
        else:
            for call in batch.calls:
                call.fail(rejection(reply) or LogRefused("the log gave an answer that nobody understands"))
            self._done(lane)

    def _unknown_producer(self, lane: Lane, batch: Batch) -> None:
        """The stream forgot this producer, so it cannot say whether it has the call."""
        if batch.maybe_sent:
            self._lose(lane, batch)
        else:
            lane.put_back(batch)
            self._waiting_bytes += batch.size
            lane.renew()
            self._done(lane)

    def _end(self, lane: Lane, batch: Batch, error: BaseException) -> None:
        """An error that says: not stored, by this try."""
        if batch.maybe_sent:
            self._lose(lane, batch)
        else:
            batch.fail(error)
            self._done(lane)

    def _lose(self, lane: Lane, batch: Batch) -> None:
        """Give up waiting for what became of a batch."""
        batch.over = True
        for call in batch.calls:
            call.fail(batch.unknown(lane.stream, call))
        lane.renew()
        self._done(lane)

    def _done(self, lane: Lane) -> None:
        lane.batch = None
        if lane.waiting:
            self._start(lane)
        else:
            self._active.discard(lane)

    # -- time and trouble -------------------------------------------------------------------------------------------

    def _sweep(self) -> bool:
        now = self._loop.time()
        for lane in list(self._active):
            batch = lane.batch
            if batch is not None and now >= batch.calls[0].deadline:
                self._expire(lane, batch, now)
            waiting = lane.waiting
            while waiting and (waiting[0].future.done() or now >= waiting[0].deadline):
                call = waiting.popleft()
                self._waiting_bytes -= call.size
                call.fail(LogTimeout("the log did not take the events in time"))
            if lane.idle:
                self._active.discard(lane)
        return bool(self._active)

    def _expire(self, lane: Lane, batch: Batch, now: float) -> None:
        seen = batch.maybe_sent or batch.sent
        for call in batch.calls:
            if now >= call.deadline:
                call.fail(batch.unknown(lane.stream, call) if seen else LogTimeout("the log did not answer in time"))
        if now >= batch.deadline:
            batch.over = True
            lane.renew()
            self._done(lane)

    def _node_up(self, node: Node) -> None:
        for lane in list(self._active):
            if lane.node is node:
                self._go_on(lane)

    def _node_down(self, node: Node) -> None:
        for lane in list(self._active):
            if lane.node is node:
                if lane.slot is not None:
                    lane.node = None  # another server may have taken over
                self._give_up(lane, node.unavailable())

    def _give_up(self, lane: Lane, error: LogUnavailable) -> None:
        """Fail what certainly was not stored; what may be waits for its deadline."""
        waiting, batch = lane.waiting, lane.batch
        if lane.attempted and lane.slot is not None and batch is None:
            self._loop.call_later(AGAIN_SECONDS * random.uniform(0.5, 1.5), self._start, lane)
        while waiting and not lane.attempted:
            call = waiting.popleft()
            self._waiting_bytes -= call.size
            call.fail(error)
        if batch is not None and not batch.sent:
            if not batch.maybe_sent:
                batch.over = True
                batch.fail(error)
                lane.batch = None
            elif lane.slot is not None:
                self._loop.call_later(AGAIN_SECONDS * random.uniform(0.5, 1.5), self._again, lane, batch)
        if lane.idle:
            self._active.discard(lane)
