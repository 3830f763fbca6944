"""Conflation: a reader that asked for it and lags is given only the latest record per key (PROTOCOL.md §5)."""

from __future__ import annotations

from collections.abc import Sequence

from tailrace.core.event import Item, Record

__all__ = ["conflate"]


def conflate(items: Sequence[Item]) -> list[Item]:
    """Leave out the records that a later one with the same key replaces, in the window that these items are.

    The rest keeps its order. Records without a key, and everything that is no record, stay, and nothing replaces a
    record across a gap. The last record always stays, so that the reader's cursor ends where it would have.
    """
    kept: list[Item] = []
    later: set[str] = set()
    for item in reversed(items):
        if not isinstance(item, Record):
            later.clear()
        elif item.key is not None:
            if item.key in later:
                continue
            later.add(item.key)
        kept.append(item)
    kept.reverse()
    return kept
