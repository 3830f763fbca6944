"""Files that a forked child must let go of: a lock lasts as long as any process has its file open."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["Locked", "let_go_in_children"]


class Locked(Protocol):
    """Holds a file and the lock on it."""

    def let_go(self) -> None:
        """Close the file, without waiting for anybody and without touching what is in it."""


_held: WeakSet[Locked] = WeakSet()


def let_go_in_children(locked: Locked) -> None:
    """The file stays this process's alone."""
    _held.add(locked)


def _forked() -> None:
    for each in list(_held):
        each.let_go()
    _held.clear()


os.register_at_fork(after_in_child=_forked)
