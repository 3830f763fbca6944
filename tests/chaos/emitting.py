"""A publisher that does not wait: it emits, and asks now and then whether all of it was delivered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tailrace.client.client import Tailrace
from tests.chaos.judge import Attempt, Board, Outcome
from tests.chaos.writers import Writer

__all__ = ["EmitWriter"]

LIFE = 12
"""Rounds of one client."""


class EmitWriter(Writer):
    """Fire and forget. What `flush` confirms is acknowledged; nobody says under which id.

    Every now and then its client is closed at once, without waiting for anything, and a new one begins. With a `keeps`
    client the spool is a folder, and the next one delivers what is left there; order holds within one client.
    """

    def __init__(
        self, board: Board, name: str, streams: list[str], *, make: Callable[[], Tailrace], keeps: bool
    ) -> None:
        super().__init__(board, name, streams)
        self._make = make
        self._keeps = keeps
        self._open: list[Attempt] = []

    async def run(self) -> None:
        """See `Writer`."""
        life = 0
        while not self._stop.is_set():
            life += 1
            client = self._make()
            try:
                await self._live(client, f"{self.name}-{life}")
            finally:
                await client.aclose(flush_seconds=0)
        await self._end(f"{self.name}-{life + 1}")

    async def _live(self, client: Tailrace, name: str) -> None:
        """Emit for some rounds, also while nothing is delivered."""
        for _ in range(LIFE):
            self._emit(client, name, 1 if self.held else self.batch)
            await asyncio.sleep(0.2 if self.held else random.uniform(0, 2 * self.pause))
            await self._confirm(client, random.choice((0.01, 1.0)))
            if self._stop.is_set():
                break
        while not self._keeps and not await self._confirm(client, 1.0):
            pass

    async def _end(self, name: str) -> None:
        """Have the last client deliver what the ones before it left."""
        client = self._make()
        try:
            self._emit(client, name, 1)
            while not await self._confirm(client, 1.0):
                pass
        finally:
            await client.aclose(flush_seconds=0)

    def _emit(self, client: Tailrace, name: str, times: int) -> None:
        self._turn += 1
        stream = self.streams[self._turn % len(self.streams)]
        for _ in range(times):
            self._number += 1
            attempt = self.board.attempt(name, stream, f"{self.name}/{self._number}")
            if client.emit(stream, "test.step", self.body(attempt)):
                self._open.append(attempt)
            else:
                self.board.complain("refused", name, stream, "the spool is full")

    async def _confirm(self, client: Tailrace, seconds: float) -> bool:
        """Whether everything is delivered that was emitted so far, by this client or the ones before it."""
        if not await client.flush(seconds):
            self.failed()
            return False
        for attempt in self._open:
            attempt.outcome = Outcome.ACKED
            self.board.note("acknowledged", attempt.writer, stream=attempt.stream, value=attempt.value)
        self.acked += len(self._open)
        self.board.count("publish", "acknowledged", len(self._open))
        self._open.clear()
        return True
