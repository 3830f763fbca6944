"""Bytes of a process's output to the pieces that become events.

Rules of this file
1. The pieces of one output, joined, are its bytes; only line ends are taken off. A piece that is not followed by one
   is `partial`: the line goes on in the next piece of the same output, or was never ended.
2. A piece has at most `limit` bytes; longer lines come as several partial pieces and a last one.
3. A piece never ends inside of a UTF-8 character, unless the output itself does.
4. A piece that is not UTF-8 is carried as base64, marked by `encoding`. Nothing is replaced.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec

__all__ = ["MAX_PIECE_BYTES", "LineSplitter", "Piece"]

MAX_PIECE_BYTES = 65_536


class Piece(msgspec.Struct, frozen=True):
    """One line, or a part of one."""

    content: bytes
    partial: bool = False

    def data(self, output: str, at: int) -> dict[str, Any]:
        """The data of its event: which output, when it was read (Unix milliseconds), and the text."""
        data: dict[str, Any] = {"stream": output, "at": at}
        try:
            data["text"] = self.content.decode()
        except UnicodeDecodeError:
            data["text"] = b64encode(self.content).decode()
            data["encoding"] = "base64"
        if self.partial:
            data["partial"] = True
        return data


class LineSplitter:
    """Cuts one output into pieces.

    Args:
        limit: most bytes of a piece.
        terminal: a terminal wrote it: lines end in CR LF.
    """

    def __init__(self, *, limit: int = MAX_PIECE_BYTES, terminal: bool = False) -> None:
        self._limit = limit
        self._terminal = terminal
        self._rest = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[Piece]:
        """Take bytes and return the pieces they complete."""
        self._rest += data
        pieces: list[Piece] = []
        begin = 0
        rest = self._rest
        while True:
            end = rest.find(b"\n", begin)
            last = end if end >= 0 else len(rest)
            while last - begin > self._limit:
                cut = self._cut(begin, begin + self._limit)
                pieces.append(Piece(bytes(rest[begin:cut]), partial=True))
                begin = cut
            if end < 0:
                break
            stop = end - 1 if self._terminal and end > begin and rest[end - 1] == 0x0D else end
            pieces.append(Piece(bytes(rest[begin:stop])))
            begin = end + 1
        del rest[:begin]
        return pieces

    def flush(self) -> list[Piece]:
        """What is there of a line that has not ended; an unfinished character stays, it may still be completed."""
        cut = self._cut(0, len(self._rest))
        return self._take(cut)

    def close(self) -> list[Piece]:
        """All that is left: the output has ended without a line end."""
        return self._take(len(self._rest))

    def _take(self, cut: int) -> list[Piece]:
        if cut == 0:
            return []
        piece = Piece(bytes(self._rest[:cut]), partial=True)
        del self._rest[:cut]
        return [piece]

    def _cut(self, begin: int, end: int) -> int:
        """The last place up to `end` that is not inside of a UTF-8 character; `end` when this is no UTF-8."""
        rest = self._rest
        for back in range(1, min(4, end - begin) + 1):
            byte = rest[end - back]
            if byte & 0xC0 == 0x80:
                continue
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return end - back if length > back else end
        return end
