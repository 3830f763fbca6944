"""Judges streams that lose records by design (trimmed, deleted, expired, evicted): every loss is told, and told right.

Rules of this file
1. What existed is what somebody was given or was told as stored; what a publisher never heard of is perhaps there too.
2. A reader's chain says that it skipped nothing in silence (`Walk`); here its gaps are held against what existed.
3. The log's end is a chain like any other; what is before it may only be what was lost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tailrace.core.event import Gap, GapReason
from tailrace.core.ids import ZERO, EntryId

if TYPE_CHECKING:
    from tests.chaos.judge import Attempt, Board, Entry, Walk

__all__ = ["judge_lossy"]

Complain = Callable[[str, str, str, str], None]


def judge_lossy(
    stream: str,
    entries: Sequence[Entry],
    board: Board,
    walks: Iterable[Walk],
    complain: Complain,
) -> None:
    """Everything that is wrong with one stream of which the log has only the end."""
    floor = entries[0].id if entries else None
    attempts = [attempt for attempt in board.attempts if attempt.stream == stream]
    existed = _existed(attempts, board, entries, stream)
    open_attempts = sum(attempt.id is None for attempt in attempts)
    walks = [walk for walk in walks if stream in walk.positions]
    gaps = [(walk, gap) for walk in walks for gap in walk.gaps if gap.stream == stream]
    for walk, gap in gaps:
        for wrong in _wrong(gap, existed, open_attempts, floor):
            complain("wrong gap", f"{walk.name} ({walk.transport})", stream, f"{gap}: {wrong}")
    _judge_acknowledged(stream, attempts, floor, [gap for _, gap in gaps], board, complain)


def _existed(attempts: Iterable[Attempt], board: Board, entries: Sequence[Entry], stream: str) -> list[EntryId]:
    told = {attempt.id for attempt in attempts if attempt.id is not None}
    return sorted(told | set(board.seen.get(stream, ())) | {entry.id for entry in entries})


def _wrong(gap: Gap, existed: Sequence[EntryId], open_attempts: int, floor: EntryId | None) -> list[str]:
    """What is not so in what a reader was told."""
    upto = gap.before if gap.before is not None else gap.cursor
    if gap.reason in (GapReason.RESET, GapReason.AHEAD):
        return [] if gap.missed is None else ["nobody can count across a reset"]
    # The next record itself is not lost; a cursor at the end of what is gone is.
    end = bisect_left(existed, upto) if gap.before is not None else bisect_right(existed, upto)
    lost = end - bisect_right(existed, gap.after)
    found = []
    if gap.missed is not None and not lost <= gap.missed <= lost + open_attempts:
        found.append(f"{lost} records are known to have been there")
    if gap.missed == 0 and gap.reason is GapReason.TRIMMED:
        found.append("nothing was lost there")
    if lost and floor is not None and existed[end - 1] >= floor and gap.reason is GapReason.TRIMMED:
        found.append(f"{existed[end - 1]} is still there")
    return found


def _judge_acknowledged(
    stream: str,
    attempts: Iterable[Attempt],
    floor: EntryId | None,
    gaps: Sequence[Gap],
    board: Board,
    complain: Complain,
) -> None:
    """What was acknowledged and is gone was given to somebody, or lies in a gap that was told."""
    seen = board.seen.get(stream, {})
    for attempt in attempts:
        if attempt.id is None or (floor is not None and attempt.id >= floor):
            continue
        given = seen.get(attempt.id)
        if given is None and not any(_covers(gap, attempt.id) for gap in gaps):
            complain("lost in silence", attempt.writer, stream, f"{attempt.value} was acknowledged as {attempt.id}")
        elif given is not None and given[1] != attempt.value:
            complain("moved", attempt.writer, stream, f"{attempt.value} was told {attempt.id}, which is {given[1]}")


def _covers(gap: Gap, id_: EntryId) -> bool:
    if gap.cursor == ZERO and gap.before is None:
        return gap.after < id_
    return gap.after < id_ and (id_ < gap.before if gap.before is not None else id_ <= gap.cursor)
