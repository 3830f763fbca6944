"""The Lua scripts of lua/, and what their replies mean."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import msgspec

from tailrace.core.event import GapReason, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.page import MISSING, Head

__all__ = ["TOMBSTONE_MS", "Script", "known", "load", "read_head", "read_id"]

TOMBSTONE_MS = 7 * 86_400_000
"""How long a stream's meta hash outlives its entries."""

_REASONS = {
    b"expired": GapReason.EXPIRED,
    b"deleted": GapReason.DELETED,
}
_STATES = {state.value.encode(): state for state in StreamState}
_new_id = tuple.__new__


class Script(msgspec.Struct, frozen=True):
    """A script: EVALSHA `sha`, and EVAL `text` where the server answers NOSCRIPT."""

    text: bytes
    sha: str


def _read(name: str) -> Script:
    folder = files("tailrace.eventlog.redis") / "lua"
    text = (folder / f"{name}.lua").read_bytes()
    if name != "append":  # the one script that must be quick needs nothing of it
        text = (folder / "head.lua").read_bytes() + text
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


# Read at import: a file must not be opened in the event loop.
_NAMES = ("append", "changed", "close", "delete", "describe", "expire", "read", "tips", "trim")
_SCRIPTS = {name: _read(name) for name in _NAMES}


def load(name: str) -> Script:
    """The script `lua/<name>.lua`."""
    return _SCRIPTS[name]


def read_id(raw: bytes) -> EntryId:
    """An id as the server writes it."""
    ms, _, seq = raw.partition(b"-")
    return _new_id(EntryId, (int(ms), int(seq)))


def read_head(parts: list[Any]) -> Head:
    """A head as head.lua answers it."""
    last, state, incarnation, base, why, largest = parts
    if state == b"missing":
        return MISSING
    return Head(
        read_id(last),
        _STATES[state],
        int(incarnation),
        ZERO if base == b"0-0" else read_id(base),
        _REASONS.get(why, GapReason.RESET),
        int(largest),
    )


def known(head: Head) -> str:
    """What changed.lua compares a stream with."""
    return f"{head.id}|{head.state.value}|{head.incarnation}"
