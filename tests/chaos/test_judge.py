"""The judge can see: every way to spoil a good history is found, and named for what it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pytest

from tailrace.core.event import Gap, GapReason, Item, Json, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tests.chaos.judge import Attempt, Board, Entry, Outcome, Violation, Walk, judge

A, B = StreamName.parse("run:a"), StreamName.parse("run:b")
COUNT = 8


def id_of(number: int) -> EntryId:
    return EntryId(1_000 + number, number) if number else ZERO


def record(stream: StreamName, number: int, value: str | None = None) -> Record:
    data = msgspec.json.encode({"v": value or f"w/{stream}/{number}", "s": str(stream)})
    return Record(stream, id_of(number), id_of(number - 1), "t", Json(data), 0)


class History:
    """A run in which all went well, and which a test may spoil before it is judged."""

    def __init__(self) -> None:
        self.attempts = [
            Attempt("w", stream, f"w/{stream}/{number}", Outcome.ACKED, id_of(number))
            for stream in (A, B)
            for number in range(1, COUNT + 1)
        ]
        self.truth = {
            str(stream): [
                Entry(id_of(number), id_of(number - 1), f"w/{stream}/{number}") for number in range(1, COUNT + 1)
            ]
            for stream in (A, B)
        }
        self.given: list[Item] = [record(stream, number) for number in range(1, COUNT + 1) for stream in (A, B)]
        self.other: list[Item] = copy.copy(self.given)
        self.cursors: list[tuple[int, dict[StreamName, EntryId]]] = []
        """After so many items, the server said this cursor."""
        self.allowed: Sequence[str] = (A, B)

    def judge(self) -> list[Violation]:
        """Feed two readers and judge."""
        board = Board(attempts=self.attempts)
        walks = [Walk(board, "one", "sse", self.allowed), Walk(board, "two", "ws", (A, B))]
        for walk, items in zip(walks, (self.given, self.other), strict=True):
            for index, item in enumerate(items):
                if walk is walks[0]:
                    for _, cursors in filter(lambda each: each[0] == index, self.cursors):
                        walk.placed(cursors, "open")
                walk.gap(item) if isinstance(item, Gap) else walk.record(item)  # type: ignore[arg-type]
        return judge(board, self.truth, walks)

    def index(self, stream: StreamName, number: int) -> int:
        return next(i for i, item in enumerate(self.given) if item == record(stream, number))


def skip_one(run: History) -> None:
    del run.given[run.index(A, 4)]


def skip_the_first(run: History) -> None:
    del run.given[run.index(B, 1)]


def skip_the_last(run: History) -> None:
    del run.given[run.index(B, COUNT)]


def skip_a_stream(run: History) -> None:
    run.given = [item for item in run.given if isinstance(item, Record) and item.stream == A]


def repeat_one(run: History) -> None:
    run.given.insert(run.index(A, 5), record(A, 4))


def repeat_the_last(run: History) -> None:
    run.given.append(record(A, COUNT))


def swap_two(run: History) -> None:
    i, j = run.index(A, 4), run.index(A, 5)
    run.given[i], run.given[j] = run.given[j], run.given[i]


def invent_a_delivery(run: History) -> None:
    run.given.append(record(A, COUNT + 1))


def change_a_value(run: History) -> None:
    run.given[run.index(A, 4)] = record(A, 4, "w/run:a/5")


def change_a_value_for_everybody(run: History) -> None:
    index = run.index(A, 4)
    run.given[index] = run.other[index] = record(A, 4, "w/run:a/5")


def give_the_event_of_another_stream(run: History) -> None:
    wrong = Json(msgspec.json.encode({"v": "w/run:b/4", "s": str(B)}))
    run.given[run.index(A, 4)] = msgspec.structs.replace(record(A, 4), data=wrong)


def give_a_stream_that_is_not_allowed(run: History) -> None:
    run.allowed = (A,)


def announce_what_was_not_lost(run: History) -> None:
    run.given.insert(run.index(A, 4), Gap(A, id_of(3), id_of(4), 0, GapReason.TRIMMED, id_of(3)))


def announce_elsewhere(run: History) -> None:
    run.given.insert(run.index(A, 4), Gap(A, id_of(6), id_of(7), 1, GapReason.TRIMMED, id_of(6)))


def announce_the_wrong_end(run: History) -> None:
    index = run.index(A, 4)
    run.given[index] = Gap(A, id_of(3), id_of(4), 1, GapReason.DELETED, id_of(4))
    del run.given[run.index(A, 5)]


def begin_elsewhere(run: History) -> None:
    run.cursors = [(6, {A: id_of(5)})]


def go_back_with_the_cursor(run: History) -> None:
    run.cursors = [(6, {A: id_of(1)})]


def lose_the_end_of_the_log(run: History) -> None:
    del run.truth[A][-1]


def lose_the_middle_of_the_log(run: History) -> None:
    del run.truth[A][3]


def lose_what_nobody_was_given(run: History) -> None:
    del run.truth[A][-1]
    run.given.remove(record(A, COUNT))
    run.other.remove(record(A, COUNT))


def store_twice(run: History) -> None:
    number = COUNT + 1
    run.truth[A].append(Entry(id_of(number), id_of(COUNT), f"w/run:a/{COUNT}"))
    again = record(A, number, f"w/run:a/{COUNT}")
    run.given.append(again)
    run.other.append(again)


def store_what_was_refused(run: History) -> None:
    run.attempts[2].outcome, run.attempts[2].id = Outcome.REFUSED, None


def store_what_nobody_published(run: History) -> None:
    del run.attempts[3]


def acknowledge_at_another_place(run: History) -> None:
    run.attempts[3].id = id_of(5)


def break_a_writers_order(run: History) -> None:
    run.attempts[3], run.attempts[4] = run.attempts[4], run.attempts[3]


def _emitted(run: History) -> None:
    """Nobody says where it is."""
    for attempt in run.attempts:
        attempt.id = None


def lose_what_was_emitted(run: History) -> None:
    _emitted(run)
    lose_what_nobody_was_given(run)


def break_an_emitters_order(run: History) -> None:
    _emitted(run)
    break_a_writers_order(run)


def break_the_chain_of_the_log(run: History) -> None:
    run.truth[A][4] = replace(run.truth[A][4], prev=id_of(2))


SPOILED: list[tuple[Callable[[History], None], str]] = [
    (skip_one, "skipped"),
    (skip_the_first, "skipped"),
    (skip_the_last, "unseen"),
    (skip_a_stream, "unseen"),
    (repeat_one, "twice or out of order"),
    (repeat_the_last, "twice or out of order"),
    (swap_two, "twice or out of order"),
    (invent_a_delivery, "vanished"),
    (change_a_value, "disagreement"),
    (change_a_value_for_everybody, "disagreement"),
    (give_the_event_of_another_stream, "crossed"),
    (give_a_stream_that_is_not_allowed, "foreign stream"),
    (announce_what_was_not_lost, "false gap"),
    (announce_elsewhere, "gap elsewhere"),
    (announce_the_wrong_end, "false gap"),
    (begin_elsewhere, "cursor"),
    (go_back_with_the_cursor, "cursor"),
    (lose_the_end_of_the_log, "lost"),
    (lose_the_middle_of_the_log, "broken chain"),
    (lose_what_nobody_was_given, "lost"),
    (store_twice, "doubled"),
    (store_what_was_refused, "aborted read"),
    (store_what_nobody_published, "invented"),
    (acknowledge_at_another_place, "moved"),
    (break_a_writers_order, "writer's order"),
    (lose_what_was_emitted, "lost"),
    (break_an_emitters_order, "writer's order"),
    (break_the_chain_of_the_log, "broken chain"),
]


def test_a_good_history_is_good() -> None:
    assert History().judge() == []


@pytest.mark.parametrize(("spoil", "kind"), SPOILED, ids=lambda each: getattr(each, "__name__", each))
def test_a_spoiled_history_is_found(spoil: Callable[[History], None], kind: str) -> None:
    run = History()
    spoil(run)

    assert kind in {violation.kind for violation in run.judge()}


def test_a_good_history_of_somebody_who_was_told_no_ids_is_good() -> None:
    run = History()
    _emitted(run)

    assert run.judge() == []


def test_an_event_of_unknown_outcome_may_be_there_or_not() -> None:
    run = History()
    run.attempts[3].outcome, run.attempts[3].id = Outcome.OPEN, None
    run.attempts.append(Attempt("w", A, "w/never-arrived"))

    assert run.judge() == []


def test_a_loss_that_is_announced_is_reported_as_lost_and_nobody_is_blamed() -> None:
    run = History()
    del run.truth[A][5:]
    reset = Gap(A, id_of(COUNT), id_of(1), None, GapReason.RESET, ZERO)
    again = [record(A, number) for number in range(1, 6)]
    run.given += [reset, *again]
    run.other += [reset, *again]

    assert {violation.kind for violation in run.judge()} == {"lost", "vanished"}


def test_a_loss_in_silence_is_more_than_a_loss() -> None:
    run = History()
    del run.truth[A][5:]

    assert "unseen" in {violation.kind for violation in run.judge()}
