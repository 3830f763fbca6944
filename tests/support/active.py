"""A run that this process produces, without a backend behind it: real events on a log in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.client.emitting import Emitting
from tailrace.core.event import Record
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.runs.active import ActiveRun
from tailrace.features.runs.backend import Claim
from tailrace.features.runs.model import Run, RunStatus

__all__ = ["Said", "active_run", "text_of"]


class Said:
    """What was said in a run's name."""

    def __init__(self, log: MemoryLog, emitting: Emitting, run: ActiveRun) -> None:
        self.log = log
        self.emitting = emitting
        self.run = run

    async def records(self) -> list[Record]:
        """Everything that is stored."""
        self.run.close()
        assert await self.emitting.wait_settled(self.run.stream, self.run.epoch)
        async with Tailrace.on(DirectLog.on(self.log)) as client:
            return await client.history(self.run.stream).records()

    async def events(self) -> list[tuple[str, Any]]:
        """The same as types and data."""
        return [(record.type, msgspec.json.decode(record.data)) for record in await self.records()]


def text_of(events: list[tuple[str, Any]], step: str) -> str:
    """What a step said."""
    return "".join(data["text"] for type_, data in events if type_ == "token.delta" and data["step"] == step)


@asynccontextmanager
async def active_run(epoch: int = 1) -> AsyncIterator[Said]:
    """A claimed run on a log of its own."""
    log = MemoryLog()
    now = time.time_ns() // 1_000_000
    run = Run(id="1", owner="tester", kind="run", status=RunStatus.RUNNING, created_at=now, owner_epoch=epoch)
    emitting = Emitting(DirectLog.on(log), None, "here")
    yield Said(log, emitting, ActiveRun(Claim(run, epoch, 15.0), emitting))
    await emitting.aclose(0)
    await log.aclose()
