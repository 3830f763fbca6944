"""The spool: nothing that was put in is lost or comes twice, whoever dies when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.client.spool import Entry, MemorySpool, Spool, SpoolFile, orphans
from tailrace.core.codec import encode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import WouldBlock

RUN = StreamName.parse("run:1")
OTHER = StreamName.parse("run:2")


def entry(number: int, stream: StreamName = RUN, size: int = 0) -> Entry:
    data = encode({"n": number, "fill": "x" * size}, max_bytes=1 << 20)
    return Entry.of(stream, Event("note", data, f"u-{number}"))


def uids(entries: list[Entry]) -> list[str | None]:
    return [each.u for each in entries]


@pytest.fixture(params=["memory", "file"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spool]:
    made: Spool
    if request.param == "memory":
        made = MemorySpool(max_bytes=20_000)
    else:
        made = SpoolFile.create(tmp_path, "test", "here", max_bytes=20_000)
    yield made
    made.close()


def test_entries_stay_until_they_are_done(spool: Spool) -> None:
    spool.put([entry(1), entry(2), entry(3)])

    assert uids(spool.peek()) == ["u-1", "u-2", "u-3"]
    assert uids(spool.peek(2)) == ["u-1", "u-2"]
    spool.done(2)
    assert uids(spool.peek()) == ["u-3"]
    assert spool.pending == 1


def test_a_batch_is_of_one_stream_and_a_close_goes_alone(spool: Spool) -> None:
    spool.put([entry(1), entry(2, OTHER), Entry(str(OTHER)), entry(3)])

    batches = []
    while batch := spool.peek():
        batches.append([(each.s, each.u, each.closes) for each in batch])
        spool.done(len(batch))

    assert batches == [
        [("run:1", "u-1", False)],
        [("run:2", "u-2", False)],
        [("run:2", None, True)],
        [("run:1", "u-3", False)],
    ]


def test_a_full_spool_takes_nothing_of_a_call_and_takes_more_when_it_was_emptied(spool: Spool) -> None:
    spool.put([entry(1, size=12_000)])

    with pytest.raises(WouldBlock):
        spool.put([entry(2), entry(3, size=12_000)])
    assert spool.pending == 1

    spool.peek()
    spool.done(1)
    spool.put([entry(3, size=12_000)])
    assert uids(spool.peek()) == ["u-3"]


def test_the_event_comes_out_as_it_went_in(spool: Spool) -> None:
    event = Event("a.b", encode({"text": "ä\n\u0000"}, max_bytes=100), "uid", "key", "actor")
    spool.put([Entry.of(RUN, event)])

    assert spool.peek()[0].event() == event


def test_who_takes_a_file_over_goes_on_after_what_was_delivered(tmp_path: Path) -> None:
    first = SpoolFile.create(tmp_path, "test", "here")
    first.put([entry(n) for n in range(5)])
    first.peek(2)
    first.done(2)

    assert SpoolFile.take_over(first.path, "here") is None
    first.close()
    second = SpoolFile.take_over(first.path, "here")

    assert second is not None
    assert second.pending == 3
    assert uids(second.peek()) == ["u-2", "u-3", "u-4"]
    second.close()


def test_a_torn_last_line_is_forgotten(tmp_path: Path) -> None:
    first = SpoolFile.create(tmp_path, "test", "here")
    first.put([entry(1)])
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"s":"run:1","t":"no')

    second = SpoolFile.take_over(first.path, "here")

    assert second is not None
    second.put([entry(2)])
    assert uids(second.peek()) == ["u-1", "u-2"]
    second.close()


def test_the_epilogue_is_added_only_when_the_writer_did_not_come_to_its_end(tmp_path: Path) -> None:
    killed = SpoolFile.create(tmp_path, "killed", "here", epilogue=[entry(99), Entry(str(RUN))])
    killed.put([entry(1)])
    killed.close()
    ended = SpoolFile.create(tmp_path, "ended", "here", epilogue=[entry(99)])
    ended.put([entry(1)])
    ended.finish([entry(2)])
    ended.close()

    found = {each.path.name.partition(".")[0]: each for each in orphans(tmp_path, "here")}

    assert uids(found["killed"].peek()) == ["u-1", "u-99"]
    assert found["killed"].pending == 3
    assert uids(found["ended"].peek()) == ["u-1", "u-2"]
    for each in found.values():
        each.close()


def test_files_for_another_server_and_files_in_use_are_left_alone(tmp_path: Path) -> None:
    other = SpoolFile.create(tmp_path, "other", "elsewhere", epilogue=[entry(9)])
    other.put([entry(1)])
    other.close()
    before = other.path.read_bytes()
    used = SpoolFile.create(tmp_path, "used", "here")
    (tmp_path / "garbage.spool").write_bytes(b"\x00\xff not json\n")

    assert list(orphans(tmp_path, "here")) == []
    assert other.path.read_bytes() == before
    used.close()


def test_an_emptied_file_is_removed_and_one_with_entries_stays(tmp_path: Path) -> None:
    empty, full = SpoolFile.create(tmp_path, "a", "here"), SpoolFile.create(tmp_path, "b", "here")
    full.put([entry(1)])
    empty.close()
    full.close()

    assert [path.name[0] for path in tmp_path.iterdir()] == ["b"]
    assert full.path.stat().st_mode & 0o777 == 0o600


def test_a_long_lived_file_does_not_grow_with_what_was_delivered(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.put([entry(0)])
    for number in range(1, 60):
        spool.put([entry(number, size=500_000)])
        batch = spool.peek(1)
        assert uids(batch) == [f"u-{number - 1}"]
        spool.done(1)

    assert spool.path.stat().st_size < 20_000_000
    spool.close()
    again = SpoolFile.take_over(spool.path, "here")
    assert again is not None
    assert uids(again.peek()) == ["u-59"]
    again.peek()
    again.done(1)
    again.close()
    assert not spool.path.exists()


@pytest.mark.parametrize("behind", [0, 1])
def test_a_note_stays_however_much_is_delivered_and_keeps_the_file_until_it_is_forgotten(
    tmp_path: Path, behind: int
) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.note("a", "old")
    spool.note("b", "1")
    spool.note("a", "2")
    for number in range(17):
        spool.put([entry(number, size=500_000)])
    spool.put([entry(100 + number) for number in range(behind)])
    while spool.pending > behind:
        spool.peek(1)
        spool.done(1)

    assert spool.path.stat().st_size < 1_000_000
    spool.note("b", None)
    spool.close()
    again = SpoolFile.take_over(spool.path, "here")
    assert again is not None
    assert (again.notes, again.pending) == ({"a": "2"}, behind)
    for _ in range(behind):
        again.peek()
        again.done(1)
    again.note("a", None)
    again.close()
    assert not spool.path.exists()


# From 3.12 on Python warns of forking with threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_holds_no_file_of_its_parent(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.put([entry(1)])
    told, tell = os.pipe()
    wait, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    try:
        os.read(told, 1)
        spool.close()

        found = list(orphans(tmp_path, "here"))

        assert [uids(each.peek()) for each in found] == [["u-1"]]
        for each in found:
            each.close()
    finally:
        for fd in (told, tell, wait, end):
            os.close(fd)
        os.waitpid(child, 0)


@pytest.mark.parametrize("damage", [b'{"s":"run:1","t":"no\0\0\n', b'{"s":"\xff"}\n', b'{"done":x\n', b'{"note":1}\n'])
def test_a_damaged_line_holds_up_no_other(tmp_path: Path, damage: bytes) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.put([entry(1)])
    spool.close()
    with spool.path.open("ab") as file:
        file.write(damage)
    again = SpoolFile.take_over(spool.path, "here")
    assert again is not None
    again.put([entry(2)])

    assert uids(again.peek()) == ["u-1", "u-2"]
    again.done(2)
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_the_epilogue_of_a_killed_writer_fits_into_a_full_file(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here", epilogue=[entry(9)])
    spool.put([entry(1)])
    spool.close()

    again = SpoolFile.take_over(spool.path, "here", max_bytes=10)

    assert again is not None
    assert uids(again.peek()) == ["u-1", "u-9"]
    again.close()


def test_what_a_killed_compaction_left_is_removed(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.put([entry(1)])
    spool.close()
    spool.path.with_suffix(".new").write_bytes(b"half of it")

    for each in orphans(tmp_path, "here"):
        each.peek()
        each.done(1)
        each.close()

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_compacted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.client.spool.COMPACT_BYTES", 10)
    spool = SpoolFile.create(tmp_path, "test", "here")
    spool.put([entry(number) for number in range(10)])
    spool.path.with_suffix(".new").mkdir()

    spool.peek()
    spool.done(8)

    assert uids(spool.peek()) == ["u-8", "u-9"]
    spool.close()
