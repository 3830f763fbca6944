"""What a forked child must know: one hook for all, which keeps nobody alive."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["Forked", "tell_children"]


class Forked(Protocol):
    """Is another in a child than in its parent."""

    def forked(self) -> None:
        """This is the child. No other thread of the parent is here, and a lock may be held by one of those."""


_told: WeakSet[Forked] = WeakSet()


def tell_children(forked: Forked) -> None:
    """Call its `forked` in every child, as long as somebody has it."""
    _told.add(forked)


def _forked() -> None:
    for each in list(_told):
        each.forked()


os.register_at_fork(after_in_child=_forked)
