"""What the answers to an append mean.

Rules of this file
1. An answer is definite only where the script gave it, or the server refused before executing anything.
2. Where a call may have been sent before, "the server cannot write now" does not say what became of the first try.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import (
    Fenced,
    IdempotencyConflict,
    LogRefused,
    LogUnavailable,
    NotFound,
    SequenceMismatch,
    StreamClosed,
    TailraceError,
)
from tailrace.eventlog.base import Appended
from tailrace.eventlog.redis.scripts import read_id

__all__ = ["MOVING", "NOT_NOW", "check_clock", "error_for", "read_appended", "refusal", "rejection", "server_word"]

NOT_NOW = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN"})
"""The server executed nothing, and will in a moment."""
MOVING = frozenset({"MOVED", "ASK"})
_REFUSED = frozenset(
    {"OOM", "READONLY", "MISCONF", "NOREPLICAS", "NOPERM", "NOAUTH", "WRONGTYPE", "IDSPACE", "CROSSSLOT", "NOPROTO"}
)
_WORD = re.compile(r"(?<![A-Z])-?([A-Z]{3,})(?![A-Za-z])")
_AHEAD_MS = 60_000
_new_id = tuple.__new__
log = logging.getLogger("tailrace.log")


def server_word(message: str) -> str:
    """The word that classes an error, also where a script's own text stands around it (Redis 5 and 6)."""
    first = message.partition(" ")[0]
    if first != "ERR" and first.isupper():
        return first
    return next((word for word in _WORD.findall(message) if word in _REFUSED or word in NOT_NOW), first)


def read_appended(reply: list[Any], count: int, *, duplicate: bool) -> list[Appended]:
    """The ids of a stored call."""
    if len(reply) > 4 and reply[4]:
        return [
            Appended(read_id(raw[1:]), True) if raw.startswith(b"=") else Appended(read_id(raw), duplicate)
            for raw in reply[4]
        ]
    ms, first = int(reply[1]), int(reply[2])
    return [Appended(_new_id(EntryId, (ms, seq)), duplicate) for seq in range(first, first + count)]


def check_clock(stream: StreamName, reply: list[Any]) -> None:
    """Raise the alarm when ids have run ahead of the server's clock: it stepped back, or somebody wrote such an id."""
    if reply[1] > reply[3]:  # texts of one length
        ahead = int(reply[1]) - int(reply[3])
        if ahead > _AHEAD_MS:
            log.warning("ids are ahead of the server's clock", extra={"stream": stream, "ahead_ms": ahead})


def rejection(reply: list[Any]) -> TailraceError | None:
    """The script's definite no; None: it is none."""
    match reply[0]:
        case b"closed":
            return StreamClosed("the stream was closed")
        case b"fenced":
            return Fenced("another producer has taken the stream", epoch=int(reply[1]))
        case b"seq":
            return SequenceMismatch(f"the head's seq is {int(reply[1])}", seq=int(reply[1]))
        case b"conflict":
            return IdempotencyConflict("the uid was used before with another body", index=int(reply[1]))
        case b"missing":
            return NotFound("there is no such stream")
    return None


def refusal(message: str) -> LogRefused:
    """The server cannot write; nothing was stored."""
    word = server_word(message)
    return LogRefused(f"the log cannot write now: {word}", reason=word)


def error_for(message: str) -> LogUnavailable | None:
    """What an error reply to an append means when it is definite; None: nobody knows."""
    word = server_word(message)
    if word in _REFUSED:
        return refusal(message)
    if word in NOT_NOW or word in MOVING:
        return LogUnavailable(f"the log does not answer now: {word}")
    return None
