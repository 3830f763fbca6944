"""What a tail knows about one stream that it watches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.keys import StreamKeys
from tailrace.eventlog.redis.wire import Place

if TYPE_CHECKING:
    from tailrace.eventlog.redis.link import Link

__all__ = ["Watched"]


class Watched(Place):
    """One watched stream: where its pushes are, and what is kept until its head is known."""

    __slots__ = (
        "_compared",
        "_compared_at",
        "_kept",
        "_kept_bytes",
        "_moved_at",
        "_overflow",
        "_waiters",
        "attaching",
        "dropped_at",
        "head",
        "holding",
        "keys",
        "link",
        "slot",
    )

    def __init__(self, stream: StreamName, keys: StreamKeys, slot: int | None) -> None:
        super().__init__(stream)
        self.keys = keys
        self.slot = slot
        self.link: Link | None = None
        self.head: Head | None = None
        """The head as last asked; None until it is known."""
        self.holding = True
        """Pushes are kept: the listener does not have the head yet."""
        self.attaching = 0
        """How many callers wait in `watch`."""
        self.dropped_at: float | None = None
        """When it was unwatched."""
        self._waiters: list[asyncio.Future[None]] = []
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._overflow = False
        self._compared: EntryId | None = None
        self._compared_at = 0
        self._moved_at = 0

    # -- attaching ---------------------------------------------------------------------------------------------

    async def wait_subscribed(self) -> None:
        """Wait until the pushes come.

        Raises:
            LogUnavailable: the subscription was refused, or the tail has ended.
        """
        if self.link is not None and self.link.is_subscribed(self.keys.push):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        try:
            await future
        finally:
            if future in self._waiters:
                self._waiters.remove(future)

    def subscribed(self) -> None:
        """The subscription was acknowledged."""
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def fail(self, error: LogUnavailable) -> None:
        """The subscription cannot be had."""
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_exception(error)

    def keep(self, message: bytes, limit: int) -> None:
        """Keep a push until the head is known, as long as all of them fit."""
        if self._overflow or self._kept_bytes + len(message) > limit:
            self._overflow = True
            self._kept.clear()
            return
        self._kept.append(message)
        self._kept_bytes += len(message)

    def attach(self) -> tuple[list[bytes], bool, Head | None]:
        """Stop keeping: what was kept, whether some was lost, and the head. No head: not to be attached now."""
        head = self.head
        if head is None or not self.holding:
            return [], False, None
        self.move(head)
        self.holding = False
        kept, overflow = self._kept, self._overflow
        self._kept, self._kept_bytes, self._overflow = [], 0, False
        return kept, overflow, head

    def drop(self, now: float) -> None:
        """Nobody watches it any more."""
        self.dropped_at = now
        self.head = None
        self.holding = True
        self._kept, self._kept_bytes, self._overflow = [], 0, False

    # -- comparing -----------------------------------------------------------------------------------------------

    def move(self, head: Head) -> None:
        """The log says that this is where it ends."""
        self.head = head
        self.last = head.id
        self.raw = str(head.id).encode()

    @property
    def signature(self) -> bytes:
        """How the stream is known, for lua/changed.lua; empty: not at all."""
        head = self.head
        return b"" if head is None else b"%b|%b|%d" % (self.raw, head.state.encode(), head.incarnation)

    def is_due(self, tick: int, cold: int, pause: int) -> bool:
        """Whether to compare it in this tick: it moved in the last `cold` ticks, or `pause` ticks have passed."""
        if self.last != self._compared:
            self._compared, self._moved_at = self.last, tick
        if tick - self._moved_at > cold and tick - self._compared_at < pause:
            return False
        self._compared_at = tick
        return True
