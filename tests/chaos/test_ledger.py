"""The judge of streams that lose by design: a true announcement passes, every untrue one is named."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tailrace.core.event import Gap, GapReason, Item, Json, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tests.chaos.judge import Attempt, Board, Entry, Outcome, Walk, judge

T = StreamName.parse("task:t")
COUNT, FLOOR = 10, 7
"""Of ten records the log holds the last four; the reader was away after the second."""


def id_of(number: int) -> EntryId:
    return EntryId(1_000 + number, number) if number else ZERO


def record(number: int) -> Record:
    data = msgspec.json.encode({"v": f"w/{number}", "s": str(T)})
    return Record(T, id_of(number), id_of(number - 1), "t", Json(data), 0)


class History:
    """A reader that was told of four trimmed records, in a run that a test may spoil."""

    def __init__(self) -> None:
        self.attempts = [Attempt("w", T, f"w/{n}", Outcome.ACKED, id_of(n)) for n in range(1, COUNT + 1)]
        self.log = [Entry(id_of(n), id_of(n - 1), f"w/{n}") for n in range(FLOOR, COUNT + 1)]
        self.gap = Gap(T, id_of(2), id_of(FLOOR), 4, GapReason.TRIMMED, id_of(6))
        self.before: list[Item] = [record(1), record(2)]
        self.after: list[Item] = [record(n) for n in range(FLOOR, COUNT + 1)]

    def judge(self) -> set[str]:
        board = Board(attempts=self.attempts)
        walk = Walk(board, "one", "sse", [T])
        for item in (*self.before, self.gap, *self.after):
            walk.gap(item) if isinstance(item, Gap) else walk.record(item)  # type: ignore[arg-type]
        return {violation.kind for violation in judge(board, {T: self.log}, [walk], lossy={T})}


def change(**facts: object) -> Callable[[History], None]:
    def spoil(run: History) -> None:
        run.gap = msgspec.structs.replace(run.gap, **facts)

    return spoil


def lose_one_more_in_the_log(run: History) -> None:
    del run.log[1]


def lose_what_came_after(run: History) -> None:
    run.log.pop()


def never_store_one(run: History) -> None:
    run.attempts[0].id = run.attempts[0].id and EntryId(500, 1)


def begin_again(run: History) -> None:
    """Deleted and written again: not spoiled, the last record is the first of a new incarnation."""
    run.log = [Entry(EntryId(2_000, 1), ZERO, "w/11")]
    run.attempts.append(Attempt("w", T, "w/11", Outcome.ACKED, EntryId(2_000, 1)))
    new = Record(T, EntryId(2_000, 1), ZERO, "t", Json(b'{"v":"w/11","s":"task:t"}'), 0)
    run.after += [Gap(T, id_of(COUNT), EntryId(2_000, 1), 0, GapReason.DELETED, id_of(COUNT)), new]


def begin_again_in_silence(run: History) -> None:
    begin_again(run)
    del run.after[-2]


def test_a_true_announcement_passes() -> None:
    assert History().judge() == set()


def test_a_stream_that_begins_again_passes() -> None:
    run = History()
    begin_again(run)

    assert run.judge() == set()


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (change(missed=3), {"wrong gap"}),
        (change(missed=5), {"wrong gap"}),
        (change(before=id_of(8)), {"wrong gap", "skipped"}),
        (change(after=id_of(1)), {"gap elsewhere", "wrong gap"}),
        (lose_one_more_in_the_log, {"broken chain", "vanished", "lost"}),
        (lose_what_came_after, {"vanished", "lost", "unseen"}),
        (never_store_one, {"lost in silence"}),
        (begin_again_in_silence, {"skipped"}),
    ],
)
def test_an_untrue_one_is_named(spoil: Callable[[History], None], kinds: set[str]) -> None:
    run = History()
    spoil(run)

    found = run.judge()

    assert kinds & found, found


def test_a_loss_that_nobody_was_told_of_is_named() -> None:
    run = History()
    run.before = [record(n) for n in range(1, 5)]
    run.gap = Gap(T, id_of(4), id_of(FLOOR), 2, GapReason.TRIMMED, id_of(6))
    run.attempts.append(Attempt("w", T, "w/x", Outcome.ACKED, EntryId(1_002, 99)))

    assert "lost in silence" in run.judge()
