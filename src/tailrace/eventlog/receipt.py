"""What settles an append whose answer never came."""

from __future__ import annotations

import secrets

import msgspec

from tailrace.core.codec import Prepared
from tailrace.core.names import StreamName

__all__ = ["Receipt", "new_producer"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """One numbered call: sent again with the same number it is stored once, whatever became of it before.

    It holds all that the call held, other callers' events too when they left in the same call; `offset` and `count`
    say which are the caller's own.
    """

    stream: StreamName
    pid: str
    """The producer: a random name, one per stream and publisher."""
    n: int
    """The producer's call, from 1."""
    events: tuple[Prepared, ...]
    offset: int = 0
    count: int = 0
    expected_seq: int | None = None
    owner_epoch: int | None = None
    close: bool = False
    attempted: bool = True
    """Whether the call may have been sent before."""


def new_producer() -> str:
    """A producer's name nobody else has."""
    return secrets.token_urlsafe(8)
