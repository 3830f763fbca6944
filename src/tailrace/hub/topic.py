"""A topic: one watched stream of this process, its recent records and its live readers.

Rules of this file
1. `position` is what the live readers were given; `ahead` adds what this loop turn brought and the flush will deliver.
   A reader joins only at `position`, so the flush gives it everything that comes after.
2. Fed by pushes and by healing reads only. A push that does not follow `ahead` starts a heal; pushes that come during
   a heal are dropped, and the heal reads once more.
3. `tail` is a contiguous stretch of the chain that ends at `position`; anything else empties it.
4. A lane that refuses a block leaves with the position from before that block.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeAlias

from tailrace.core.chain import Position, advance, at_head, follows
from tailrace.core.event import Ended, Gap, Item, Record, StreamState
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page
from tailrace.hub.block import Block, Cell

__all__ = ["FIRST_PAGE_RECORDS", "PAGE_RECORDS", "TAIL_BYTES", "Lane", "Stretch", "Topic"]

log = logging.getLogger("tailrace.hub")

TAIL_RECORDS = 2_048
TAIL_BYTES = 1_048_576
"""What one topic's tail holds at most."""
FLUSH_BYTES = 65_536
"""One block of a turn, roughly."""
STRETCH_RECORDS = 512
STRETCH_BYTES = 262_144
PAGES = 8
PAGE_RECORDS = 1_000
FIRST_PAGE_RECORDS = 128
"""Who has just come back waits for a page of this size: a large one takes several times as long (`bench resume`)."""
_OVERHEAD = 160
"""Bytes a small record costs beside its data, roughly; only for the tail's limit."""


Read: TypeAlias = Callable[[StreamName, Position, int], Awaitable[Page]]
Spawn: TypeAlias = "Callable[[Coroutine[Any, Any, Stretch]], asyncio.Future[Stretch]]"


class Lane(Protocol):
    """One reader of one stream, while it is live. The subscription implements it."""

    def deliver(self, block: Block, after: Position) -> bool:
        """Take a block that leads to `after`; False: refused, and the lane has left the live set."""


class Stretch:
    """Items that follow a position, and the position they lead to."""

    __slots__ = ("after", "block", "seen")

    def __init__(self, block: Block, after: Position, seen: Position | None = None) -> None:
        self.block = block
        self.after = after
        self.seen = seen
        """Where the topic was when the log was asked; None: it was not."""


class Topic:
    """See the rules above."""

    def __init__(self, stream: StreamName, read: Read, spawn: Spawn, share: Callable[[], int]) -> None:
        """
        Args:
            stream: what is watched.
            read: reads a page of at most so many records out of the log.
            spawn: starts a task of the hub's.
            share: how many bytes this tail may hold now, at most TAIL_BYTES; what it lacks is read from the log.
        """
        self.stream = stream
        self._share = share
        self._read = read
        self._spawn = spawn
        self.head = Head()
        """The stream's state as last told; its `id` may be behind `position`."""
        self.position = at_head(self.head)
        self.ahead = self.position
        self.live: dict[Lane, None] = {}
        self.lanes = 0
        """Lanes of all states that use this topic; at 0 the hub may forget it."""
        self.idle_since = 0.0
        self._pending: list[Item] = []
        self._tail: deque[Cell] = deque()
        self._tail_bytes = 0
        self._pages: OrderedDict[Position, asyncio.Future[Stretch]] = OrderedDict()
        self._moved: asyncio.Future[None] | None = None
        self._ended: Ended | None = None
        self.attached = False
        self.healing = False
        self.heal_again = False

    # -- what comes in -------------------------------------------------------------------------------------

    def attach(self, head: Head) -> None:
        """Begin at the head that the tail answered. Pushes that came earlier ask for a heal (`heal_again`)."""
        self.head = head
        self.position = self.ahead = at_head(head)
        self.attached = True

    def push(self, records: Sequence[Record]) -> bool:
        """Take pushed records. False: they do not follow, so a heal is needed."""
        if self.healing or not self.attached:
            self.heal_again = True
            return True
        for record in records:
            ahead = self.ahead
            if follows(ahead, record):
                self.ahead = Position(record.id, record.id, proven=True)
            elif record.id <= ahead.cursor:
                continue
            elif record.foreign:
                self.ahead = Position(record.id, ahead.chained, proven=True)
            else:
                return False
            self._pending.append(record)
        return True

    def change_state(self, head: Head) -> bool:
        """Take the stream's state as the log tells it. False: its end is not where we are, so a heal is needed."""
        if self.healing or not self.attached:
            self.heal_again = True
            return True
        if head.id != self.ahead.chained or head.incarnation != self.head.incarnation:
            return False
        self.head = head
        if head.ended:
            self._end(Ended(self.stream, self.ahead.cursor, head.state))
        return True

    def take_page(self, page: Page) -> bool:
        """A healing read from `ahead`. True: the log has more, or the history changed and is read from its start."""
        self.head = page.head
        before = self.ahead
        items, self.ahead = advance(self.stream, before, page)
        for item in items:
            if isinstance(item, Ended):
                self._end(item)
            else:
                self._pending.append(item)
                if isinstance(item, Gap):
                    # Pages of the history before would be given again and again: each of them leads to this gap.
                    self.forget_pages()
        restarted = self.ahead.cursor < before.cursor
        return page.more or restarted

    def _end(self, ended: Ended) -> None:
        """Tell the end once, however often it is found out."""
        if ended == self._ended:
            return
        self._ended = ended
        self._pending.append(ended)
        if ended.state is not StreamState.CLOSED:
            # The entries are gone: nobody shall be given them out of this process's memory.
            self._tail.clear()
            self._tail_bytes = 0
            self.forget_pages()

    def ends_at(self, position: Position) -> bool:
        """Whether who is there has all of the stream: its last record, and the foreign entries behind it."""
        return position.cursor == self.position.cursor and self.position.chained == self.head.id

    @property
    def dirty(self) -> bool:
        """Whether a flush has something to deliver."""
        return bool(self._pending)

    # -- what goes out -------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Deliver what the turn brought to every live lane, as one block. True: there is more for another turn.

        A block for thousands of lanes is bounded, so that the loop comes back to its other work in between.
        """
        if not self._pending:
            return False
        cut = _cut(self._pending)
        items, self._pending = self._pending[:cut], self._pending[cut:]
        cells = [Cell(item) for item in items]
        if self._pending:
            last = items[-1]
            assert isinstance(last, Record)  # noqa: S101 - see _cut
            self.position = after = Position(last.id, last.id, proven=True)
        else:
            self.position = after = self.ahead
        self._keep(cells)
        if self.live:
            block = Block(self.stream, cells)
            for lane in tuple(self.live):
                try:
                    taken = lane.deliver(block, after)
                except Exception:
                    # One broken sink must not stop the turn for the others.
                    log.exception("a sink failed", extra={"stream": self.stream})
                    taken = False
                if not taken:
                    self.live.pop(lane, None)
        self.notify()
        return bool(self._pending)

    def _keep(self, cells: list[Cell]) -> None:
        tail = self._tail
        for cell in cells:
            item = cell.item
            if not isinstance(item, Record) or item.foreign:
                if not isinstance(item, Ended):
                    tail.clear()
                    self._tail_bytes = 0
                continue
            tail.append(cell)
            self._tail_bytes += len(item.data) + _OVERHEAD
        limit = self._share()
        while len(tail) > TAIL_RECORDS or self._tail_bytes > limit:
            item = tail.popleft().item
            assert isinstance(item, Record)  # noqa: S101 - rule 3
            self._tail_bytes -= len(item.data) + _OVERHEAD

    def recent(self, position: Position) -> Stretch | None:
        """What follows `position`, out of the tail; None: the tail does not reach back that far."""
        tail, chained = self._tail, position.chained
        if chained is None or not tail or position.cursor != chained:
            return None
        oldest = tail[0].item
        assert isinstance(oldest, Record)  # noqa: S101 - rule 3
        index = chained.seq - oldest.id.seq + 1
        if not 0 <= index < len(tail):
            return None
        first = tail[index].item
        if not isinstance(first, Record) or first.prev != chained:
            return None
        cells: list[Cell] = []
        size = 0
        for cell in itertools.islice(tail, index, index + STRETCH_RECORDS):
            cells.append(cell)
            item = cell.item
            assert isinstance(item, Record)  # noqa: S101 - rule 3
            size += len(item.data) + _OVERHEAD
            if size >= STRETCH_BYTES:
                break
        last = cells[-1].item
        assert isinstance(last, Record)  # noqa: S101 - rule 3
        return Stretch(Block(self.stream, cells), Position(last.id, last.id, proven=True))

    async def page(self, position: Position, limit: int = PAGE_RECORDS) -> Stretch:
        """What follows `position`, out of the log. Readers at one place share one read, the first one's.

        Raises:
            LogUnavailable: the log did not answer.
        """
        shared = self._pages.get(position)
        if shared is None or (shared.done() and (shared.cancelled() or shared.exception() is not None)):
            shared = self._spawn(self._load(position, limit))
            self._pages[position] = shared
            if len(self._pages) > PAGES:
                self._pages.popitem(last=False)
        try:
            # The read belongs to all who wait for it: one who leaves must not cancel it for the others.
            stretch = await asyncio.shield(shared)
        finally:
            if shared.done() and self._pages.get(position) is shared and _stale(shared, position):
                del self._pages[position]
        return stretch

    async def _load(self, position: Position, limit: int) -> Stretch:
        seen = self.position
        page = await self._read(self.stream, position, limit)
        items, after = advance(self.stream, position, page)
        if after.cursor < position.cursor:
            # History begins anew, and this process may not have been told yet.
            self.forget_pages()
        return Stretch(Block.of(self.stream, items), after, seen)

    def forget_pages(self) -> None:
        """Drop the shared pages: the history may have changed under them."""
        self._pages.clear()

    # -- waiting -------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Wake who waits for this topic to move."""
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)
        self._moved = None

    def moved(self) -> asyncio.Future[None]:
        """Done when `position` has moved or a heal has ended. Shield it: others wait for it too."""
        if self._moved is None:
            self._moved = asyncio.get_running_loop().create_future()
        return self._moved


def _cut(items: list[Item]) -> int:
    """How many items one block takes: up to a record of the chain, about FLUSH_BYTES in all."""
    size = 0
    for index, item in enumerate(items, 1):
        if type(item) is Record:
            size += len(item.data) + _OVERHEAD
            if size >= FLUSH_BYTES and not item.foreign:
                return index
    return len(items)


def _stale(shared: asyncio.Future[Stretch], position: Position) -> bool:
    """A page that failed or led nowhere answers only those who waited for it."""
    return shared.cancelled() or shared.exception() is not None or shared.result().after == position
