"""A real disk that is full: what was taken is kept and delivered, what does not fit is refused, counted and told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.cli.run.session import Recorder, epilogue
from tailrace.client.spool import Entry, SpoolFile
from tailrace.core.names import StreamName
from tailrace.errors import WouldBlock
from tests.client.test_spool import entry, uids
from tests.support.need import absent

DISK_BYTES = 65_536


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        absent("a small disk", "mounting one needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(spool: SpoolFile) -> int:
    """Put events until no more is taken; how many were."""
    number = 0
    for size in (1_000, 100, 0):
        while True:
            try:
                spool.put([entry(number, size=size)])
            except WouldBlock:
                break
            number += 1
    with pytest.raises(WouldBlock, match="No space left"):
        spool.put([entry(number)])
    return number


def test_what_a_full_disk_took_is_kept_whole(disk: Path) -> None:
    spool = SpoolFile.create(disk, "test", "here")

    taken = fill(spool)

    assert taken > 10
    assert spool.pending == taken
    given = []
    while batch := spool.peek():
        given += uids(batch)
        spool.done(len(batch))
    assert given == [f"u-{number}" for number in range(taken)]
    spool.close()


def test_a_full_disk_does_not_stop_what_is_delivered(disk: Path) -> None:
    spool = SpoolFile.create(disk, "test", "here")
    taken = fill(spool)

    for _ in range(taken):
        assert len(spool.peek(1)) == 1
        spool.done(1)

    assert spool.pending == 0
    assert spool.peek() == []
    spool.close()


def test_a_disk_with_room_again_takes_more(disk: Path) -> None:
    other = disk / "other"
    other.write_bytes(b"x" * 40_000)
    spool = SpoolFile.create(disk, "test", "here")
    taken = fill(spool)

    other.unlink()
    spool.put([entry(taken, size=1_000)])

    assert spool.pending == taken + 1
    assert uids(spool.peek(1_000))[-1] == f"u-{taken}"
    spool.close()


def test_a_command_that_ends_on_a_full_disk_ends_and_its_stream_is_ended_when_there_is_room(disk: Path) -> None:
    other = disk / "other"
    other.write_bytes(b"x" * 40_000)
    stream = StreamName.parse("run:1")
    spool = SpoolFile.create(disk, "test", "here", epilogue=epilogue(stream, "u"))
    recorder = Recorder(spool, stream, "u")
    fill(spool)

    recorder.exited(0, None, 1.0)
    spool.close()

    assert recorder.lost
    assert SpoolFile.take_over(spool.path, "here") is None
    other.unlink()
    following = SpoolFile.take_over(spool.path, "here")
    assert following is not None
    last: list[Entry] = []
    while batch := following.peek():
        last = [*last, *batch][-2:]
        following.done(len(batch))
    assert [each.t for each in last] == ["run.lost", ""]
    following.close()
