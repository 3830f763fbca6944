"""Judges what a reader was given by what the stream holds: no loss, no duplicate, in order, or an announced gap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tailrace.core.event import Gap, Item, Record
from tailrace.core.ids import ZERO, EntryId

__all__ = ["assert_exactly_once", "faults", "ids_of"]


def ids_of(items: Iterable[Item]) -> list[EntryId]:
    """The records' ids, in the order they were given."""
    return [item.id for item in items if isinstance(item, Record)]


def faults(items: Sequence[Item], history: Sequence[EntryId], *, start: EntryId = ZERO) -> list[str]:
    """What is wrong with `items`, given to a reader that began at `start` of a stream that holds `history`.

    Args:
        items: what the reader was given, in order.
        history: the ids that the stream holds now, in order.
        start: the cursor that the reader began with.
    """
    found: list[str] = []
    cursor: EntryId | None = start
    seen: set[EntryId] = set()
    for item in items:
        if isinstance(item, Gap):
            if item.after != cursor and cursor is not None:
                found.append(f"{item} is announced to a reader at {cursor}")
            if item.cursor < (cursor or ZERO):
                seen.clear()
            cursor = None
        elif isinstance(item, Record):
            if item.id in seen:
                found.append(f"{item.id} was given twice")
            seen.add(item.id)
            if cursor is not None and item.prev != cursor and not item.foreign:
                found.append(f"{item.id} follows {item.prev}, and was given to a reader at {cursor} without a gap")
            cursor = item.id
    if cursor is not None and history and cursor != history[-1]:
        found.append(f"the reader stopped at {cursor}, the stream goes on to {history[-1]}")
    announced = any(isinstance(item, Gap) for item in items)
    missing = [id_ for id_ in history if id_ > start and id_ not in seen]
    if missing and not announced:
        found.append(f"{len(missing)} records were never given, the first is {missing[0]}")
    return found


def assert_exactly_once(items: Sequence[Item], history: Sequence[EntryId], *, start: EntryId = ZERO) -> None:
    """Fail with everything that `faults` finds, and with any gap at all: nothing was lost here, so none is right."""
    found = faults(items, history, start=start)
    found += [f"{item} was announced and nothing was lost" for item in items if isinstance(item, Gap)]
    assert not found, "\n".join(found[:20])
