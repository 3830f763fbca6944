"""Where events wait for the log: a bounded line, in memory or in a file that survives the process.

Rules of this file
1. First in, first out. An event leaves only when `done` says so; until then `peek` answers it again.
2. A file is one append-only list of JSON lines: a header, entries, and notes of how far they were delivered. A torn
   last line (the process was killed) is ignored, a damaged one logged. Entries carry uids: one may be delivered again.
3. Only the holder of the file's lock touches it; who finds an unlocked file may take it over (`orphans`).
4. Full means `WouldBlock`; nothing is dropped here.
5. A note is a fact beside the entries. It stays until it is forgotten, however much is delivered, and keeps the file.
6. Safe to use from several threads; a file's calls may wait for the disk.

Survives `kill -9` of the process at any point. Not a power cut: the file is not synced to the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tailrace.client.entry import Entry, Header, Line, Note, readable
from tailrace.client.forks import tell_children
from tailrace.errors import ConfigError, UsageError, WouldBlock

__all__ = ["FILE_BYTES", "MEMORY_BYTES", "Entry", "MemorySpool", "Spool", "SpoolFile", "orphans"]

MEMORY_BYTES = 16_777_216
FILE_BYTES = 268_435_456
COMPACT_BYTES = 8_388_608
BATCH_EVENTS = 250
BATCH_BYTES = 1_048_576
SUFFIX = ".spool"
FINISHED = b'{"finished":true}\n'


class Spool(Protocol):
    """A bounded line of entries."""

    @property
    def pending(self) -> int:
        """How many entries wait."""

    def put(self, entries: Sequence[Entry]) -> None:
        """Add entries, all or none. Raises: WouldBlock when they do not fit."""

    def peek(self, most: int = BATCH_EVENTS) -> list[Entry]:
        """The next entries, of one stream, without removing them."""

    def done(self, count: int) -> None:
        """The first `count` entries are settled."""

    def close(self) -> None:
        """Let go of it. A file with nothing left in it is removed."""


class MemorySpool:
    """See `Spool`; gone with the process."""

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes

    @property
    def pending(self) -> int:
        """See `Spool`."""
        return len(self._entries)

    def put(self, entries: Sequence[Entry]) -> None:
        """See `Spool`."""
        size = sum(map(_cost, entries))
        if self._bytes + size > self._max_bytes:
            raise WouldBlock("the spool is full", limit=self._max_bytes)
        self._bytes += size
        self._entries.extend(entries)

    def peek(self, most: int = BATCH_EVENTS) -> list[Entry]:
        """See `Spool`."""
        return _batch(iter(self._entries), most)

    def done(self, count: int) -> None:
        """See `Spool`."""
        for _ in range(count):
            self._bytes -= _cost(self._entries.popleft())

    def close(self) -> None:
        """See `Spool`."""


_ENTRY = msgspec.json.Decoder(Entry)
_LINE = msgspec.json.Decoder(Line)
_NOTE = msgspec.json.Decoder(Note)


class SpoolFile:
    """See `Spool`; one file, one writer. Make one with `create` or `take_over`."""

    def __init__(self, path: Path, fd: int, header: Header, *, max_bytes: int) -> None:
        self.path = path
        self.header = header
        self.pending = 0
        """See `Spool`."""
        self.finished = False
        """Whether the writer came to its end."""
        self._fd = fd
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._head_line = msgspec.json.encode(header) + b"\n"
        self._size = os.fstat(fd).st_size
        self._ends: list[int] = []
        self._notes: dict[str, str] = {}
        self._head = self._scan()
        tell_children(self)

    @classmethod
    def create(
        cls, folder: Path, name: str, target: str, *, epilogue: Sequence[Entry] = (), max_bytes: int = FILE_BYTES
    ) -> SpoolFile:
        """Begin a new file in a folder, which is made where it is missing.

        Raises:
            ConfigError: the folder cannot be written.
        """
        header = Header(1, target, list(epilogue))
        path = folder / f"{name}.{secrets.token_hex(4)}{SUFFIX}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(fd, msgspec.json.encode(header) + b"\n")
        except OSError as exc:
            raise ConfigError(f"events cannot be kept in {folder}: {exc.strerror}") from exc
        return cls(path, fd, header, max_bytes=max_bytes)

    @classmethod
    def take_over(cls, path: Path, target: str, *, max_bytes: int = FILE_BYTES) -> SpoolFile | None:
        """Take a file whose writer has ended; None: it is in use, gone, for another target, or cannot be used now."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been finished and removed between the open and the lock.
            if os.fstat(fd).st_nlink == 0:
                raise OSError("removed")
            first = _read_to(fd, 0, 65_536).partition(b"\n")
            header = msgspec.json.decode(first[0], type=Header)
            if not first[1] or header.spool != 1 or header.target != target:
                raise ValueError("not a spool for us")
        except (OSError, ValueError):
            os.close(fd)
            return None
        spool = cls(path, fd, header, max_bytes=max_bytes)
        try:
            spool._mend()
        except WouldBlock:  # a full disk: later
            spool.close()
            return None
        return spool

    @property
    def notes(self) -> dict[str, str]:
        """What was noted and not forgotten."""
        with self._lock:
            return dict(self._notes)

    def note(self, key: str, text: str | None) -> None:
        """Keep a fact in the file, or forget it (None). It fits always; a file that is closed is left as it is.

        Raises:
            WouldBlock: the disk is full.
        """
        with self._lock:
            if self._fd < 0 or (text is None and key not in self._notes):
                return
            if text is None:
                del self._notes[key]
                with contextlib.suppress(WouldBlock):  # a full disk: whoever finds it again finds it true
                    self._append(_note_lines({key: None}))
            else:
                self._append(_note_lines({key: text}))
                self._notes[key] = text

    def finish(self, last: Sequence[Entry] = ()) -> None:
        """Add the last entries; whoever takes this file over need not add the epilogue.

        These fit always: the end of the story must not be lost because its middle was long.
        """
        with self._lock:
            self._append(_lines_of(last) + FINISHED)
            self.pending += len(last)
            self.finished = True

    def put(self, entries: Sequence[Entry]) -> None:
        """See `Spool`."""
        lines = _lines_of(entries)
        with self._lock:
            if self._size - self._head + len(lines) > self._max_bytes:
                raise WouldBlock("the spool is full", limit=self._max_bytes)
            self._append(lines)
            self.pending += len(entries)

    def peek(self, most: int = BATCH_EVENTS) -> list[Entry]:
        """See `Spool`."""
        with self._lock:
            self._ends = []
            return _batch(self._noted(), most)

    def done(self, count: int) -> None:
        """See `Spool`."""
        with self._lock:
            if count > len(self._ends):
                raise UsageError("only what `peek` answered can be done")
            self._head, self._ends = self._ends[count - 1], []
            self.pending -= count
            if self.pending == 0 and self._size > COMPACT_BYTES and not self._notes:
                self._restart()
            elif self._head > max(COMPACT_BYTES, self._size - self._head):
                self._compact()
            else:
                with contextlib.suppress(WouldBlock):  # a full disk: without the note, entries may come again
                    self._append(b'{"done":%d}\n' % self._head)

    def close(self) -> None:
        """See `Spool`."""
        with self._lock:
            if self._fd < 0:
                return
            if self.pending == 0 and not self._notes and (self.finished or not self.header.epilogue):
                with contextlib.suppress(OSError):
                    self.path.unlink()
            os.close(self._fd)
            self._fd = -1

    def forked(self) -> None:
        """See `Forked`. A lock lasts as long as any process has its file open: it stays the parent's alone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _noted(self) -> Iterator[Entry]:
        for entry, end in self._entries(self._head):
            self._ends.append(end)
            yield entry

    def _append(self, lines: bytes) -> None:
        try:
            _write(self._fd, lines)
        except OSError as exc:
            # A part may have been written; without its end it would join the next line.
            os.ftruncate(self._fd, self._size)
            raise WouldBlock(f"events cannot be kept: {exc.strerror}") from exc
        self._size += len(lines)

    def _scan(self) -> int:
        """Find where the undelivered entries begin, and count them."""
        head, finished = 0, False
        for line, end in self._lines(0):
            if line.startswith(b'{"spool"'):
                head = max(head, end)
            elif line.startswith(b'{"done"'):
                head = max(head, (readable(_LINE, line) or Line()).done or 0)
            elif line.startswith(b'{"finished"'):
                finished = True
            elif line.startswith(b'{"note"') and (note := readable(_NOTE, line)) is not None:
                self._notes.pop(note.note, None)
                if note.of is not None:
                    self._notes[note.note] = note.of
        self.finished = finished
        self.pending = sum(1 for _ in self._entries(head))
        return head

    def _mend(self) -> None:
        """Cut a torn last line off, and add the epilogue of a writer that was killed."""
        end = max((end for _, end in self._lines(0)), default=0)
        os.ftruncate(self._fd, end)
        self._size = end
        # Of a compaction that was killed.
        with contextlib.suppress(OSError):
            self.path.with_suffix(".new").unlink()
        if not self.finished and self.header.epilogue:
            self.finish(self.header.epilogue)

    def _compact(self) -> None:
        """Keep only what is not delivered. Replaces the file by a rename: a kill leaves the old one or the new one."""
        fresh = self.path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:  # no more files: as below
            return
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            _write(fd, self._head_line + (FINISHED if self.finished else b"") + _note_lines(self._notes))
            begin = os.fstat(fd).st_size
            # Notes of delivery speak of offsets in the old file.
            for line in (each for each, _ in self._lines(self._head) if each.startswith(b'{"s"')):
                _write(fd, line + b"\n")
        except OSError:  # no room for both: the old one is good, and a later call tries again
            os.close(fd)
            fresh.unlink()
            return
        fresh.rename(self.path)
        os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._head = begin

    def _restart(self) -> None:
        """Everything was delivered: forget it. After a kill in between, the epilogue may come a second time, with
        the same uids."""
        os.ftruncate(self._fd, len(self._head_line))
        self._head = self._size = len(self._head_line)
        if self.finished:
            self._append(FINISHED)
            self._head = self._size

    def _entries(self, offset: int) -> Iterator[tuple[Entry, int]]:
        for line, end in self._lines(offset):
            if line.startswith(b'{"s"') and (entry := readable(_ENTRY, line)) is not None:
                yield entry, end

    def _lines(self, offset: int) -> Iterator[tuple[bytes, int]]:
        """Complete lines from an offset on, each with the offset behind it."""
        rest = b""
        while True:
            part = os.pread(self._fd, 262_144, offset + len(rest))
            if not part:
                return
            data = rest + part
            begin = 0
            while (end := data.find(b"\n", begin)) >= 0:
                yield data[begin:end], offset + end + 1
                begin = end + 1
            rest = data[begin:]
            offset += begin


def orphans(folder: Path, target: str) -> Iterator[SpoolFile]:
    """Take over the files of a folder whose writers have ended, for one target. Close each."""
    try:
        paths = sorted(folder.glob(f"*{SUFFIX}"))
    except OSError:
        return
    for path in paths:
        spool = SpoolFile.take_over(path, target)
        if spool is not None:
            yield spool


def _batch(entries: Iterator[Entry], most: int) -> list[Entry]:
    """Entries of one stream and epoch that may leave together; a close leaves alone."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.d)
        together = not batch or (batch[0].s, batch[0].e) == (entry.s, entry.e)
        if batch and (len(batch) >= most or size > BATCH_BYTES or entry.closes or not together):
            break
        batch.append(entry)
        if entry.closes:
            break
    return batch


def _lines_of(entries: Sequence[Entry]) -> bytes:
    return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)


def _note_lines(notes: Mapping[str, str | None]) -> bytes:
    return b"".join(msgspec.json.encode(Note(key, text)) + b"\n" for key, text in notes.items())


def _cost(entry: Entry) -> int:
    return len(entry.d) + len(entry.s) + len(entry.t) + 160


def _write(fd: int, data: bytes) -> None:
    view: Any = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_to(fd: int, offset: int, most: int) -> bytes:
    parts = []
    while most > 0 and (part := os.pread(fd, min(most, 65_536), offset)):
        parts.append(part)
        offset += len(part)
        most -= len(part)
        if b"\n" in part:
            break
    return b"".join(parts)
