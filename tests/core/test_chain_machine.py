"""Whatever happens to a stream, a reader is given each record once and in order, or is told that it is not.

The machine interleaves everything that happens to a stream with readers that read pages of any size, are cut off after
any item and come back with the cursor that this item gave them.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tailrace.core.chain import Position, advance, at_head, start
from tailrace.core.event import Ended, Gap, GapReason, Item, Record, StreamState
from tailrace.core.frames import position_of
from tailrace.core.ids import ZERO, EntryId
from tests.core.stream_model import STREAM, StreamModel


class Reader:
    """A client that remembers what it was given and complains."""

    def __init__(self, model: StreamModel, position: Position, last: Record | None) -> None:
        self.model = model
        self.position = position
        self.cursor = position.cursor
        self.last = last
        """The last record of the chain that it was given; None: none since history began."""
        self.gap: Gap | None = None
        """Announced since the last record of the chain."""
        self.unsure = False
        """It came back with a cursor that says nothing about the chain."""
        self.foreign = ZERO
        """It came back with this entry of somebody else's."""
        self.given: set[EntryId] = set()

    def read(self, limit: int, *, cut: int | None = None, stale: bool = False) -> bool:
        """One step. False: nothing more to come for now."""
        page = self.model.page(self.position.cursor, limit, stale=stale)
        items, position = advance(STREAM, self.position, page)
        moved = position != self.position
        taken = items if cut is None else items[:cut]
        for index, item in enumerate(taken):
            self.take(item, next((after for after in items[index + 1 :] if isinstance(after, Record)), None))
        if len(taken) < len(items):
            self.come_back()
        else:
            if items:
                assert position.cursor == self.cursor
            self.position, self.cursor = position, position.cursor
        return page.more or moved or any(not isinstance(item, Ended) for item in taken)

    def come_back(self) -> None:
        """Cut off; it has only the cursor now."""
        if self.cursor == ZERO and self.gap is None and self.last is not None:
            raise AssertionError("a reader was sent back to the start without a word")
        self.position = start(self.cursor)
        if self.last is not None and self.cursor > self.last.id:
            self.foreign = self.cursor
        if self.last is None or self.cursor != self.last.id:
            self.unsure = self.unsure or self.last is None

    def take(self, item: Item, following: Record | None) -> None:
        if isinstance(item, Gap):
            self.take_gap(item, following)
        elif isinstance(item, Record):
            self.take_record(item)
        elif isinstance(item, Ended):
            assert item.at == self.cursor
            assert item.state in (StreamState.CLOSED, StreamState.EXPIRED, StreamState.DELETED)
        self.cursor = position_of(item) or self.cursor

    def take_gap(self, gap: Gap, following: Record | None) -> None:
        assert gap.after == self.cursor
        assert gap.missed is None or gap.missed >= 0
        restarts = gap.reason in (GapReason.RESET, GapReason.AHEAD) and gap.cursor == ZERO
        if restarts:
            self.given.clear()
        else:
            assert gap.before == (following.id if following is not None else None)
            self.check_missed(gap)
        self.gap = gap

    def check_missed(self, gap: Gap) -> None:
        """What is said to be missing is missing, all of it."""
        chain = self.model.chain
        if gap.missed is None or self.unsure or self.gap is not None:
            return
        if self.last is not None and self.position.chained not in (None, self.last.id):
            # It came back with a foreign entry's id that looks like a record's, and is gone.
            return
        ids = [record.id for record in chain]
        entries = [entry for entry in self.model.entries if gap.before is not None and entry.id >= gap.before]
        upto = next((entry.id for entry in entries if not entry.foreign), None)
        end = ids.index(upto) if upto is not None and upto in ids else len(ids)
        if self.last is None:
            assert gap.missed == (upto.seq - 1 if upto is not None else self.model.head.id.seq)
        elif self.last.id in ids and self.last.id not in self.model.uncounted:
            assert gap.missed == end - ids.index(self.last.id) - 1

    def take_record(self, record: Record) -> None:
        assert record.id not in self.given, "delivered twice"
        assert record.id > self.cursor or self.gap is not None, "out of order"
        self.given.add(record.id)
        if record.foreign:
            return
        if self.gap is None and not self.unsure:
            if self.last is None:
                assert record.prev == ZERO, "the start is missing, in silence"
            else:
                ids = [each.id for each in self.model.chain]
                assert self.last.id in ids, "the history changed in silence"
                missing = ids[ids.index(self.last.id) + 1 : ids.index(record.id)]
                by_hand = [id_ for id_ in missing if id_ < self.foreign and id_ in self.model.removed]
                assert missing == by_hand, "records are missing in silence"
        self.last, self.gap, self.unsure, self.foreign = record, None, False, ZERO


class ChainMachine(RuleBasedStateMachine):
    """See the first line of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.model = StreamModel()
        self.readers = [Reader(self.model, start(ZERO), None)]

    def reader(self, index: int) -> Reader:
        return self.readers[index % len(self.readers)]

    @rule(count=st.integers(1, 6), elapsed=st.integers(0, 3))
    def append(self, count: int, elapsed: int) -> None:
        if self.model.head.state is not StreamState.CLOSED:
            self.model.append(count, elapsed)

    @rule(seq=st.sampled_from([0, 0, 0, 1, 5, 900]), elapsed=st.sampled_from([0, 1, 5_000]))
    def append_foreign(self, seq: int, elapsed: int) -> None:
        self.model.append_foreign(seq, elapsed)

    @rule(count=st.integers(1, 8))
    def trim(self, count: int) -> None:
        self.model.trim(count)

    @rule(index=st.integers(-3, 3))
    def remove(self, index: int) -> None:
        self.model.remove(index)

    @rule(state=st.sampled_from([StreamState.CLOSED, StreamState.EXPIRED, StreamState.DELETED]))
    def end(self, state: StreamState) -> None:
        self.model.end(state)

    @rule(count=st.integers(1, 4))
    def lose(self, count: int) -> None:
        self.model.lose(count)

    @rule()
    def flush(self) -> None:
        self.model.flush()

    @rule()
    def forget_meta(self) -> None:
        self.model.forget_meta()

    @rule(index=st.integers(0, 9), limit=st.integers(1, 6), stale=st.booleans())
    def read(self, index: int, limit: int, stale: bool) -> None:
        self.reader(index).read(limit, stale=stale)

    @rule(index=st.integers(0, 9), limit=st.integers(1, 6), cut=st.integers(0, 5))
    def read_and_lose_the_connection(self, index: int, limit: int, cut: int) -> None:
        self.reader(index).read(limit, cut=cut)

    @rule(index=st.integers(0, 9))
    def come_back(self, index: int) -> None:
        self.reader(index).come_back()

    @rule()
    def reader_from_the_start(self) -> None:
        self.readers.append(Reader(self.model, start(ZERO), None))

    @rule()
    def reader_from_now(self) -> None:
        entries = self.model.entries
        tip = entries[-1].id if entries and entries[-1].foreign else ZERO
        head = msgspec.structs.replace(self.model.head, tip=tip)
        last = next((record for record in self.model.chain if record.id == head.id), None)
        reader = Reader(self.model, at_head(head), last)
        reader.unsure = last is None
        self.readers.append(reader)

    @rule(ms=st.integers(0, 1_010), seq=st.integers(0, 12))
    def reader_from_a_made_up_cursor(self, ms: int, seq: int) -> None:
        reader = Reader(self.model, start(EntryId(ms, seq)), None)
        reader.unsure = True
        self.readers.append(reader)

    @rule(limit=st.integers(1, 6), index=st.integers(0, 9))
    def everybody_catches_up(self, limit: int, index: int) -> None:
        reader = self.reader(index)
        for _ in range(3 * len(self.model.entries) + 10):
            if not reader.read(limit):
                break
            assert isinstance(reader.cursor, EntryId)
        else:
            raise AssertionError("a reader goes in circles")
        if self.model.head.state is not StreamState.MISSING:
            assert reader.position.chained == self.model.head.id

    @invariant()
    def model_is_sane(self) -> None:
        ids = [entry.id for entry in self.model.entries]
        assert ids == sorted(set(ids))


TestChain = pytest.mark.filterwarnings("ignore")(ChainMachine.TestCase)
TestChain.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
