"""Cursors: how far a reader got, one id per stream (PROTOCOL.md §4).

Rules of this file
1. Of one stream the cursor is the record's id; of several it is a token, `c1.` + base64url of one 20-byte cell per
   stream, sorted by name: 4 bytes of name hash, 8 of ms, 8 of seq. Its length depends only on the number of streams.
2. A token is opaque to clients and never a reason for a 400 unless it was damaged: a stream that it does not name
   starts at its default, a hash that nobody asked for is ignored.
3. Names of one connection whose hashes collide are told apart by their order. If the set of streams changed in
   between, one may be given the other's id; the chain then announces a gap, it never loses in silence.
4. Whatever comes in, nothing is raised but `InvalidCursor`.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import TypeAlias

import msgspec

from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import InvalidCursor, UsageError

__all__ = [
    "MAX_CURSOR_BYTES",
    "MAX_STREAMS",
    "CursorToken",
    "Resume",
    "Since",
    "Special",
    "format_cursor",
    "name_hash",
    "parse_cursor",
    "parse_resume",
]

MAX_CURSOR_BYTES = 4_096
MAX_STREAMS = 32
"""Streams in one token."""


class Special(Enum):
    """Places to resume from that are not an id."""

    NOW = "$"
    """The head: only what comes from now on."""
    DEFAULT = ""
    """Nothing was said: where the stream's kind begins."""


class Since(msgspec.Struct, frozen=True):
    """From the first record at or after a time."""

    ms: int
    """Unix milliseconds."""


Resume: TypeAlias = EntryId | Special | Since
"""What a reader asked for in one stream."""

_PREFIX = "c1."
_CELL = Struct(">4sQQ")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_MS = re.compile(r"[1-9][0-9]{0,19}", re.ASCII)
_U64 = 2**64
_NOWHERE = EntryId(_U64 - 1, _U64 - 1)
"""The cell of a stream in which the reader has no position yet. No record can follow the largest id."""


def parse_resume(text: str) -> Resume:
    """Read where to resume in one stream: an id, `0` (the first retained record), `$` (now), a time in ms, or nothing.

    Raises:
        InvalidCursor: none of these, or over 4 KiB.
    """
    _check_length(text)
    if text == "":
        return Special.DEFAULT
    if text == "$":
        return Special.NOW
    if text == "0":
        return ZERO
    if "-" in text:
        return EntryId.parse(text)
    if _MS.fullmatch(text) is None or int(text) >= _U64:
        raise InvalidCursor(
            "a cursor is an id (<ms>-<seq>), 0, $, a time in milliseconds, or a token that was given out"
        )
    return Since(int(text))


def parse_cursor(text: str, streams: Collection[StreamName]) -> dict[StreamName, Resume]:
    """Read a cursor for these streams: a token, or one place that holds for all of them.

    A single id says nothing about several streams; ask for one of them, or for a time.

    Raises:
        InvalidCursor: unreadable or damaged, over 4 KiB, or an id where several streams are asked for.
    """
    _check_length(text)
    if text.startswith(_PREFIX):
        return _place(_decode(text), streams)
    resume = parse_resume(text)
    if isinstance(resume, EntryId) and resume != ZERO and len(streams) > 1:
        raise InvalidCursor("an id is a cursor of one stream; for several send the token that they gave you")
    return dict.fromkeys(streams, resume)


def format_cursor(cursors: Mapping[StreamName, EntryId]) -> str:
    """Write a cursor: the plain id of one stream, the token of 2 to 32.

    Raises:
        UsageError: no stream, or more than 32.
    """
    if len(cursors) == 1:
        return str(next(iter(cursors.values())))
    token = CursorToken(cursors)
    for stream, id_ in cursors.items():
        token.move(stream, id_)
    return str(token)


@lru_cache(maxsize=65_536)
def name_hash(stream: StreamName) -> bytes:
    """The four bytes that stand for a stream in a token: BLAKE2b of its name, digest size 4."""
    return blake2b(stream.encode(), digest_size=4).digest()


class CursorToken:
    """The token of one subscription, kept up to date in place; every text of it has the same length."""

    __slots__ = ("_cells", "_offsets")

    def __init__(self, streams: Iterable[StreamName]) -> None:
        names = sorted(streams)
        if not 1 <= len(names) <= MAX_STREAMS:
            raise UsageError(f"a cursor token names 1 to {MAX_STREAMS} streams, not {len(names)}")
        self._offsets = {name: index * _CELL.size for index, name in enumerate(names)}
        self._cells = bytearray(_CELL.size * len(names))
        for name in names:
            self.move(name, _NOWHERE)

    def move(self, stream: StreamName, cursor: EntryId) -> None:
        """The reader was given everything of `stream` up to `cursor`."""
        _CELL.pack_into(self._cells, self._offsets[stream], name_hash(stream), cursor.ms, cursor.seq)

    def __bytes__(self) -> bytes:
        return b"c1." + urlsafe_b64encode(self._cells).rstrip(b"=")

    def __str__(self) -> str:
        return bytes(self).decode()


def _check_length(text: str) -> None:
    # Characters first: what is not ASCII is refused later, and need not be encoded to be measured.
    if len(text) > MAX_CURSOR_BYTES:
        raise InvalidCursor(f"a cursor has at most {MAX_CURSOR_BYTES} bytes")


def _decode(token: str) -> dict[bytes, list[EntryId]]:
    body = token[len(_PREFIX) :]
    if _BASE64URL.fullmatch(body) is None:
        raise InvalidCursor("the cursor token is damaged")
    try:
        cells = urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except binascii.Error as exc:
        raise InvalidCursor("the cursor token is damaged") from exc
    # Unused trailing bits must be zero: one token per set of cursors.
    if urlsafe_b64encode(cells).rstrip(b"=") != body.encode() or len(cells) % _CELL.size:
        raise InvalidCursor("the cursor token is damaged")
    if len(cells) > MAX_STREAMS * _CELL.size:
        raise InvalidCursor(f"a cursor token names at most {MAX_STREAMS} streams")
    found: dict[bytes, list[EntryId]] = {}
    for hashed, ms, seq in _CELL.iter_unpack(cells):
        found.setdefault(hashed, []).append(EntryId(ms, seq))
    return found


def _place(found: Mapping[bytes, list[EntryId]], streams: Iterable[StreamName]) -> dict[StreamName, Resume]:
    placed: dict[StreamName, Resume] = {}
    used: dict[bytes, int] = {}
    for stream in sorted(streams):
        hashed = name_hash(stream)
        ids = found.get(hashed)
        if ids is None:
            placed[stream] = Special.DEFAULT
            continue
        index = used[hashed] = used.get(hashed, -1) + 1
        cursor = ids[min(index, len(ids) - 1)]
        placed[stream] = Special.DEFAULT if cursor == _NOWHERE else cursor
    return placed
