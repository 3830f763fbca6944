"""One clock for the heartbeats of all connections of a process."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["Beating", "Pulse"]

SLOTS = 16


class Beating(Protocol):
    """Something that wants to be asked for a heartbeat."""

    def beat(self) -> None:
        """Write a heartbeat if nothing was written since the last call. Never waits."""


class Pulse:
    """Calls `beat` of every member twice in each period, spread over it, so that no connection stays silent longer."""

    def __init__(self, period_seconds: float = 15.0) -> None:
        self._pause = period_seconds / 2 / SLOTS
        self._slots: list[dict[Beating, None]] = [{} for _ in range(SLOTS)]
        self._home: dict[Beating, int] = {}
        self._next = 0

    def add(self, member: Beating) -> None:
        """Begin to beat a member; in the emptiest place a round from now."""
        self._next = (self._next + 1) % SLOTS
        self._home[member] = self._next
        self._slots[self._next][member] = None

    def remove(self, member: Beating) -> None:
        """Stop beating a member."""
        slot = self._home.pop(member, None)
        if slot is not None:
            self._slots[slot].pop(member, None)

    def __len__(self) -> int:
        return len(self._home)

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            for slot in self._slots:
                await asyncio.sleep(self._pause)
                for member in tuple(slot):
                    member.beat()
