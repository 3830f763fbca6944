"""What one read of a stream answers."""

from __future__ import annotations

import msgspec

from tailrace.core.event import GapReason, Record, StreamState
from tailrace.core.ids import ZERO, EntryId

__all__ = ["MISSING", "Head", "Page"]


class Head(msgspec.Struct, frozen=True, gc=False):
    """Where a stream ends, and what became of it. Compare for equality: ids and numbers can be reused after a loss."""

    id: EntryId = ZERO
    """The last record of the chain; ZERO when the current incarnation has none."""
    state: StreamState = StreamState.MISSING
    incarnation: int = 0
    """Counts the histories under this name: +1 when a stream is written again after its entries were gone."""
    base: EntryId = ZERO
    """The last id of the incarnation before, of a foreign entry perhaps when `base_reason` is reset. Every id of this
    one is larger. ZERO: there was none."""
    base_reason: GapReason = GapReason.RESET
    """What ended the incarnation before: expired, deleted or reset."""
    largest: int = 0
    """Size of the largest record seen, in bytes: reads choose their COUNT by it."""

    tip: EntryId = ZERO
    """The last entry, foreign ones included, where that is known to lie behind `id`: readers from now begin there."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is coming."""
        return self.state in _ENDED


_ENDED = frozenset({StreamState.CLOSED, StreamState.EXPIRED, StreamState.DELETED})
MISSING = Head()


class Page(msgspec.Struct, frozen=True):
    """Entries in id order, beginning at the id that was asked for, inclusive."""

    records: tuple[Record, ...]
    more: bool
    """Whether the limit, not the stream's end, ended the page. Then it holds at least one entry beside the one that was
    asked for: a page of the reader's own cursor alone would lead nowhere."""
    head: Head
    """Read before the entries: `records` may already be ahead of it."""
    first: EntryId | None = None
    """The first retained entry's id. Always set when the page does not prove the cursor by itself, that is
    when its first record neither is the one asked for nor follows it; None then means that nothing is retained."""
