"""Entry ids: `<ms>-<seq>`, a real Redis stream id whose `seq` counts the stream's records (PROTOCOL.md §3)."""

from __future__ import annotations

import re
from typing import NamedTuple

from tailrace.errors import InvalidCursor

__all__ = ["EntryId", "ZERO", "id_after", "id_before"]

_CANONICAL = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})", re.ASCII)
_U64 = 2**64


class EntryId(NamedTuple):
    """The id of one entry. Ids of one stream compare in the order of its entries."""

    ms: int
    """At least the server's clock at the append, in milliseconds; only ever used for order, never as a time."""
    seq: int
    """The record's number in its stream's incarnation: 1, 2, 3, … without holes."""

    @classmethod
    def parse(cls, text: str) -> EntryId:
        """Read the canonical form.

        Raises:
            InvalidCursor: not two decimal 64-bit numbers without leading zeros, joined by `-`.
        """
        match = _CANONICAL.fullmatch(text)
        if match is None:
            raise InvalidCursor("an entry id is <ms>-<seq>")
        ms, seq = int(match[1]), int(match[2])
        if ms >= _U64 or seq >= _U64:
            raise InvalidCursor("an entry id's parts are 64-bit numbers")
        return cls(ms, seq)

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


ZERO = EntryId(0, 0)
"""Before every record: the `prev` of a stream's first record, and the cursor of a reader that has read nothing."""


def id_after(entry: EntryId) -> EntryId:
    """The smallest larger id."""
    return EntryId(entry.ms, entry.seq + 1) if entry.seq < _U64 - 1 else EntryId(entry.ms + 1, 0)


def id_before(entry: EntryId) -> EntryId:
    """The largest smaller id; of ZERO itself."""
    if entry == ZERO:
        return ZERO
    return EntryId(entry.ms, entry.seq - 1) if entry.seq > 0 else EntryId(entry.ms - 1, _U64 - 1)
