"""The judge of the bad days can see: every way to spoil a good history is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tailrace.core.event import Gap, GapReason, Item, Json, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tests.support.checker import assert_exactly_once, faults

RUN = StreamName.parse("run:x")
IDS = [EntryId(1_000 + seq, seq) for seq in range(1, 9)]


def record(index: int) -> Record:
    prev = IDS[index - 1] if index else ZERO
    return Record(RUN, IDS[index], prev, "t", Json(b"1"), 0)


def good() -> list[Item]:
    return [record(index) for index in range(len(IDS))]


def lose_one(items: list[Item]) -> None:
    del items[3]


def lose_the_end(items: list[Item]) -> None:
    del items[-1]


def lose_the_beginning(items: list[Item]) -> None:
    del items[0]


def repeat_one(items: list[Item]) -> None:
    items.insert(4, items[3])


def repeat_at_the_end(items: list[Item]) -> None:
    items.append(items[-1])


def swap_two(items: list[Item]) -> None:
    items[3], items[4] = items[4], items[3]


def invent_one(items: list[Item]) -> None:
    items.insert(4, Record(RUN, EntryId(1_004, 99), IDS[3], "t", Json(b"1"), 0))


def announce_elsewhere(items: list[Item]) -> None:
    del items[3]
    items.insert(3, Gap(RUN, IDS[5], IDS[6], 1, GapReason.TRIMMED, IDS[5]))


SPOILED: list[Callable[[list[Item]], None]] = [
    lose_one,
    lose_the_end,
    lose_the_beginning,
    repeat_one,
    repeat_at_the_end,
    swap_two,
    invent_one,
    announce_elsewhere,
]


def test_a_good_history_has_no_fault() -> None:
    assert_exactly_once(good(), IDS)


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_history_is_found_out(spoil: Callable[[list[Item]], None]) -> None:
    items = good()
    spoil(items)

    assert faults(items, IDS)


def test_a_loss_that_is_announced_at_its_place_is_no_fault_but_not_exactly_once() -> None:
    items = good()
    items[3:4] = [Gap(RUN, IDS[2], IDS[4], 1, GapReason.TRIMMED, IDS[3])]

    assert faults(items, IDS) == []
    with pytest.raises(AssertionError, match="nothing was lost"):
        assert_exactly_once(items, IDS)
