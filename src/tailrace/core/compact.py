"""Compaction: a late reader is given many small pieces of text as one record (PROTOCOL.md §5.8).

Rules of this file
1. Only `token.delta` records that follow each other directly in the chain are taken together; anything else between
   them, a gap above all, stays where it is and ends the group.
2. The group becomes one `token.snapshot` that stands at its last delta: with that one's id, and the first one's `prev`.
   So the chain holds, and a cursor means what it always means: the reader has everything up to it.
3. A snapshot adds text, as its deltas would: texts of a step, joined in the order they come, are the step's text,
   wherever the reader began and however pages were cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tailrace.core.event import Item, Json, Record

__all__ = ["DELTA", "SNAPSHOT", "Compactor", "compact"]

DELTA = "token.delta"
"""Type of an event `{"step","text"}`: a piece of the text that a step makes."""
SNAPSHOT = "token.snapshot"
"""Type of `{"texts":[{"step","text"}, …],"records"}`: so many deltas as one."""
MAX_BYTES = 524_288
"""Larger groups become several snapshots."""


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    step: str
    text: str


_DELTA = msgspec.json.Decoder(_Delta)


class Compactor:
    """Takes items one by one and gives them back, groups of deltas as one record."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._first: Record | None = None
        self._last: Record | None = None
        self._texts: dict[str, list[str]] = {}
        self._count = 0
        self._bytes = 0

    @property
    def pending(self) -> bool:
        """Whether a group is held back."""
        return self._last is not None

    def joins(self, item: Item) -> bool:
        """Whether an item would become part of the group that is held back."""
        return (
            self._last is not None
            and isinstance(item, Record)
            and item.prev == self._last.id
            and item.stream == self._last.stream
            and self._bytes + len(item.data) <= self._max_bytes
            and _delta(item) is not None
        )

    def feed(self, item: Item) -> list[Item]:
        """Take the next item; return what is complete by it."""
        joins = self.joins(item)
        done = [] if joins else self.flush()
        delta = _delta(item)
        if delta is None or not isinstance(item, Record):
            return [*done, item]
        self._first = self._first or item
        self._last = item
        self._texts.setdefault(delta.step, []).append(delta.text)
        self._count += 1
        self._bytes += len(item.data)
        return done

    def flush(self) -> list[Item]:
        """Give back the group that is held back; a group of one is that record itself."""
        first, last = self._first, self._last
        if first is None or last is None:
            return []
        record = last
        if first is not last:
            texts = [{"step": step, "text": "".join(parts)} for step, parts in self._texts.items()]
            data = Json(msgspec.json.encode({"texts": texts, "records": self._count}))
            record = Record(last.stream, last.id, first.prev, SNAPSHOT, data, last.time)
        self._first = self._last = None
        self._texts, self._count, self._bytes = {}, 0, 0
        return [record]


def compact(items: Iterable[Item], max_bytes: int = MAX_BYTES) -> list[Item]:
    """The same items, in their order, with every group of deltas as one record."""
    compactor = Compactor(max_bytes)
    done = [each for item in items for each in compactor.feed(item)]
    return done + compactor.flush()


def _delta(item: Item) -> _Delta | None:
    if not isinstance(item, Record) or item.type != DELTA or item.prev is None:
        return None
    try:
        return _DELTA.decode(item.data)
    except (ValueError, RecursionError):
        return None
