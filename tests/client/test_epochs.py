"""Events of an owner: the epoch goes through the spool and fences out who lost the stream."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.client.emitting import Emitting
from tailrace.client.spool import Entry, SpoolFile
from tailrace.core.codec import encode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import Fenced
from tailrace.eventlog.memory import MemoryLog

RUN = StreamName.parse("run:1")


def event(data: object, uid: str | None = None) -> Event:
    return Event("note", encode(data, max_bytes=1_000_000), uid)


async def stored(log: MemoryLog) -> list[object]:
    async with Tailrace.on(DirectLog.on(log)) as client:
        return [msgspec.json.decode(each.data) for each in await client.history("run:1").records()]


def test_a_file_without_epochs_can_be_read(tmp_path: Path) -> None:
    first = SpoolFile.create(tmp_path, "test", "here")
    first.close()
    header = b'{"spool":1,"target":"here","epilogue":[]}\n'
    first.path.write_bytes(header + b'{"s":"run:1","t":"note","d":7,"u":"u-1"}\n')

    second = SpoolFile.take_over(first.path, "here")

    assert second is not None
    assert second.peek() == [Entry("run:1", "note", msgspec.Raw(b"7"), "u-1")]
    assert second.peek()[0].e is None
    second.close()


def test_an_epoch_is_kept_in_the_file_and_events_of_two_do_not_leave_together(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.put([Entry.of(RUN, event(n, f"u-{n}"), epoch) for n, epoch in enumerate([None, None, 3, 3, 4])])

    batches = []
    while batch := spool.peek():
        batches.append([entry.e for entry in batch])
        spool.done(len(batch))

    assert batches == [[None, None], [3, 3], [4]]
    spool.close()


async def test_what_a_lost_stream_refuses_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log = MemoryLog()
    emitting = Emitting(DirectLog.on(log), None, "here")
    await log.append(RUN, [event("new")], owner_epoch=2)

    for n in range(20):
        emitting.emit(RUN, event(n), 1)
    assert await emitting.wait_settled(RUN, 1)

    assert caplog.text.count("refused") == 1
    assert await stored(log) == ["new"]
    await emitting.aclose(0)
    await log.aclose()


async def test_events_of_an_older_epoch_are_refused_and_the_newer_ones_go_on() -> None:
    log = MemoryLog()
    emitting = Emitting(DirectLog.on(log), None, "here")

    emitting.emit(RUN, event("old"), 1)
    assert await emitting.wait_settled(RUN, 1)
    emitting.emit(RUN, event("new"), 2)
    emitting.emit(RUN, event("late"), 1)
    emitting.emit(RUN, event("newer"), 2)
    assert await emitting.wait_settled(RUN, 2)

    assert await stored(log) == ["old", "new", "newer"]
    await emitting.aclose(0)
    with pytest.raises(Fenced):
        await DirectLog.on(log).append(RUN, [event("dead")], seconds=1, owner_epoch=1)
    await log.aclose()


async def test_a_burst_larger_than_the_spool_is_delivered_as_far_as_it_was_taken() -> None:
    log = MemoryLog()
    emitting = Emitting(DirectLog.on(log), None, "here")
    text = "x" * 20_000

    taken = sum(emitting.emit(RUN, event(text)) for _ in range(900))

    assert 800 < taken < 900
    assert emitting.refused == 900 - taken
    assert await emitting.flush(30)
    assert (await log.info(RUN)).length == taken + 1
    await emitting.aclose(0)
    await log.aclose()
