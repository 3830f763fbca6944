"""What a forked child must know: one hook for all, which keeps nobody alive.

Files are let go of: a lock lasts as long as any process has its file open.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["Forked", "Locked", "let_go_in_children", "tell_children"]


class Locked(Protocol):
    """Holds a file and the lock on it."""

    def let_go(self) -> None:
        """Close the file, without waiting for anybody and without touching what is in it."""


class Forked(Protocol):
    """Is another in a child than in its parent."""

    def forked(self) -> None:
        """This is the child. No other thread of the parent is here, and a lock may be held by one of those."""


_held: WeakSet[Locked] = WeakSet()
_told: WeakSet[Forked] = WeakSet()


def let_go_in_children(locked: Locked) -> None:
    """The file stays this process's alone."""
    _held.add(locked)


def tell_children(forked: Forked) -> None:
    """Call its `forked` in every child, as long as somebody has it."""
    _told.add(forked)


def _forked() -> None:
    for held in list(_held):
        held.let_go()
    _held.clear()
    for told in list(_told):
        told.forked()


os.register_at_fork(after_in_child=_forked)
