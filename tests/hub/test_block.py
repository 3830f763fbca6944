"""A cell encodes its item once for each form, whichever forms come and in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

from tailrace.core.event import Gap, GapReason, Item
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.hub.block import Block, Cell

GAP = Gap(StreamName.parse("run:block"), EntryId(1, 1), None, None, GapReason.EXPIRED, EntryId(1, 1))


class CountingForm:
    """A form that says how often it was asked."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.asked = 0

    def item(self, item: Item) -> bytes:
        assert item is GAP
        self.asked += 1
        return self.name

    def join(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(frames)


def test_each_form_is_encoded_once_in_whatever_order_they_come() -> None:
    forms = [CountingForm(b"a"), CountingForm(b"b"), CountingForm(b"c")]
    cell = Cell(GAP)

    for form in [*forms, *reversed(forms), *forms]:
        assert cell.frame(form) == form.name

    assert [form.asked for form in forms] == [1, 1, 1]


def test_blocks_that_share_a_cell_encode_it_once() -> None:
    form, cell = CountingForm(b"a"), Cell(GAP)

    assert Block(None, [cell]).encode(form) == b"a"
    assert Block(None, [cell, cell]).encode(form) == b"aa"
    assert form.asked == 1
