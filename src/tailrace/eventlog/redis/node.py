"""One connection to the server behind a route: made on demand, made again when lost, with a breaker.

Rules of this file
1. A lost connection is made again at once, then with jittered back-off, for as long as the node is open.
2. The breaker opens when there was no connection for `BREAKER_SECONDS`, or when a server that owes replies has been
   silent for as long. Then callers fail at once; the attempts to connect are the probes that close it again. Time in
   which our own loop was busy says nothing of the server, and does not count.
3. A silent connection is kept until a new one has logged in: a slow server is not made slower by reconnects, and what
   it still answers counts.
4. Nothing is re-sent here.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from tailrace.errors import ConfigError, LogTimeout, LogUnavailable
from tailrace.eventlog.redis.connection import Connection
from tailrace.eventlog.redis.endpoint import Endpoint
from tailrace.eventlog.redis.topology import Topology

__all__ = ["BREAKER_SECONDS", "Node"]

log = logging.getLogger("tailrace.log")

BREAKER_SECONDS = 0.6
CONNECT_SECONDS = 1.0
"""For one attempt to connect and log in."""
TICK_SECONDS = 0.2
BREAKER_TICKS = round(BREAKER_SECONDS / TICK_SECONDS)
MAX_PAUSE_SECONDS = 0.5


class Node:
    """See the rules above.

    Args:
        topology: is told when the server cannot be reached.
        resolve: says where the server is now.
        name: the connection's client name.
    """

    def __init__(self, topology: Topology, resolve: Callable[[], Awaitable[Endpoint]], *, name: str) -> None:
        self.connection: Connection | None = None
        """To be used now; None while there is none or it is silent."""
        self.down: LogUnavailable | None = None
        """Why callers fail at once, while the breaker is open …"""
        self.down_since: float | None = None
        """… and since when it is, on the loop's clock."""
        self.on_up: Callable[[Node], None] = lambda _: None
        self.on_down: Callable[[Node], None] = lambda _: None
        self._topology = topology
        self._resolve = resolve
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._silent: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._breaker_timer: asyncio.TimerHandle | None = None
        self._breaker_ticks = 0
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_seen = 0.0
        self._ticks = 0
        self._changed: asyncio.Future[None] = self._loop.create_future()
        self._closed = False

    async def ready(self, deadline: float) -> Connection:
        """Wait for a connection.

        Raises:
            LogUnavailable: the breaker is open (LogTimeout: no connection by the deadline).
        """
        while True:
            if self.connection is not None:
                return self.connection
            if self.down is not None:
                raise self.unavailable()
            self.want()
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._changed)
            except TimeoutError:
                raise LogTimeout("the log cannot be reached in time") from None

    def unavailable(self) -> LogUnavailable:
        """The error for a caller that is refused now."""
        reason = self.down.detail if self.down is not None else "there is no connection"
        return LogUnavailable(f"the log is not available: {reason}", retry_after=round(random.uniform(0.5, 1.5), 2))

    def want(self) -> None:
        """Have a connection made, if there is none."""
        if self.connection is None and self._connecting is None and not self._closed:
            self._connecting = self._loop.create_task(self._connect(), name=f"connect {self._name}")
            if self._breaker_timer is None and self.down is None:
                self._breaker_ticks = 0
                self._watch_attempts()

    def sent(self) -> None:
        """Something was sent that is to be answered: watch that it is."""
        if self._tick_timer is None and self.connection is not None:
            self._ticks, self._tick_seen = 0, self.connection.last_received
            self._tick_timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def close(self) -> None:
        """Give the connection up; nothing is connected any more."""
        self._closed = True
        for timer in (self._breaker_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        for connection in (self.connection, self._silent):
            if connection is not None:
                connection.abort()
        if self.down is None:
            self.down = LogUnavailable("it was closed")
        self._tell()

    async def wait_closed(self) -> None:
        """Wait until what `close` ended is gone."""
        waits = [c.closed for c in (self.connection, self._silent) if c is not None]
        if self._connecting is not None:
            waits.append(self._connecting)
        if waits:
            await asyncio.wait(waits, timeout=1.0)

    # -- connecting -------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        pause = 0.01
        while not self._closed:
            endpoint = None
            try:
                endpoint = await self._resolve()
                deadline = self._loop.time() + CONNECT_SECONDS
                connection = await Connection.open(endpoint, deadline=deadline, name=self._name)
            except (LogUnavailable, ConfigError) as exc:
                if endpoint is not None:
                    self._topology.lost(endpoint)
                if self.down is not None or isinstance(exc, ConfigError):
                    self._break(exc.detail)
            except Exception as exc:  # a defect here must not leave callers waiting without a word
                log.exception("cannot connect", extra={"connection": self._name})
                self._break(type(exc).__name__)
            else:
                self._connecting = None
                self._use(connection)
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(MAX_PAUSE_SECONDS, pause * 2)

    def _use(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
            return
        silent, self._silent = self._silent, None
        self.connection = connection
        connection.closed.add_done_callback(lambda _: self._lost(connection))
        self._up()
        if silent is not None:
            # Its replies will not come; what it was asked is asked again on the new connection.
            silent.abort()

    def _up(self) -> None:
        if self._breaker_timer is not None:
            self._breaker_timer.cancel()
            self._breaker_timer = None
        if self.down is not None:
            self.down = self.down_since = None
            log.info("the log answers again", extra={"connection": self._name})
        self._tell()
        self.on_up(self)

    def _lost(self, connection: Connection) -> None:
        if connection is self._silent:
            self._silent = None
        if connection is not self.connection:
            return
        self.connection = None
        self._stop_ticking()
        if not self._closed:
            self._topology.lost(connection.endpoint)
            self.want()

    def _watch_attempts(self) -> None:
        due = self._loop.time() + TICK_SECONDS
        self._breaker_timer = self._loop.call_at(due, self._count_attempt, due)

    def _count_attempt(self, due: float) -> None:
        # A tick that comes late was kept waiting by our own loop, and so was the connection.
        self._breaker_ticks += self._loop.time() - due < TICK_SECONDS
        if self._breaker_ticks >= BREAKER_TICKS:
            self._break("it cannot be reached")
        else:
            self._watch_attempts()

    def _break(self, why: str) -> None:
        if self._breaker_timer is not None:
            self._breaker_timer.cancel()
            self._breaker_timer = None
        if self._closed or self.connection is not None:
            return
        if self.down is None:
            log.warning("the log does not answer", extra={"connection": self._name, "why": why})
            self.down_since = self._loop.time()
        self.down = LogUnavailable(why)
        self._tell()
        self.on_down(self)

    def _tell(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)
        self._changed = self._loop.create_future()

    # -- silence ----------------------------------------------------------------------------------------------------

    def _stop_ticking(self) -> None:
        if self._tick_timer is not None:
            self._tick_timer.cancel()
            self._tick_timer = None

    def _tick(self) -> None:
        self._tick_timer = None
        connection = self.connection or self._silent
        if connection is None:
            return
        progress = connection.last_received != self._tick_seen or not connection.waiting
        if progress:
            if connection is self._silent:
                self._revive(connection)
            if not connection.waiting:
                return
            self._ticks, self._tick_seen = 0, connection.last_received
        else:
            self._ticks += 1
            if self._ticks >= BREAKER_TICKS and connection is self.connection:
                self.connection, self._silent = None, connection
                self._break("it is silent")
                self.want()
        self._tick_timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def _revive(self, connection: Connection) -> None:
        """The silent connection speaks again before a new one was made."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._silent, self.connection = None, connection
        self._up()
