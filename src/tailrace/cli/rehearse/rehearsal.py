"""The steps of a rehearsal, and its report.

off → verify → on → verify → compare → 10 → 50 → 100 → back, under load all the time. Then everything that was published
is held against what an old subscriber heard and what the streams hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tailrace.cli.rehearse.ledger import Ledger, Verdict
from tailrace.cli.rehearse.processes import OldSubscriber, Viewers, gateway, old_subscriber, publisher, viewers
from tailrace.core.names import StreamName
from tailrace.core.rollout import Health, Mode, Rollout, writing
from tailrace.eventlog.embedded import EmbeddedRedis
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.eventlog.rollout import CHANGE_STREAM
from tailrace.features.rollout.changing import roll_back, set_percent
from tailrace.features.workflow.message import KIND, stream_of

__all__ = ["Plan", "Rehearsal", "Step", "rehearse"]

STEP_SECONDS = 60.0
"""A step that is not reached by then has failed."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How large a rehearsal is."""

    publishers: int = 2
    workflows: int = 20
    """Of each publisher."""
    rate: float = 100.0
    """Events a second of each publisher."""
    settle_seconds: float = 3.0
    steps: tuple[int, ...] = (10, 50, 100)

    @property
    def viewed(self) -> list[str]:
        """Workflows that viewers of the gateway watch."""
        return [f"flow-{publisher}-{index}" for publisher in range(self.publishers) for index in range(self.workflows)]


class Step(msgspec.Struct, frozen=True):
    """What was done and seen."""

    name: str
    seen: str
    good: bool
    seconds: float


class Rehearsal:
    """One rehearsal under way; `steps` is what there is to tell so far."""

    def __init__(
        self, plan: Plan, store: RedisRollout, log: RedisLog, ledger: Ledger, old: OldSubscriber, viewers: Viewers
    ) -> None:
        self.steps: list[Step] = []
        self._plan = plan
        self._store = store
        self._log = log
        self._ledger = ledger
        self._old = old
        self._viewers = viewers

    async def run(self, told: Callable[[Step], None]) -> None:
        """Go through all steps; the first that fails is the last."""
        for name, work in self._work().items():
            begun = time.monotonic()
            try:
                async with asyncio.timeout(STEP_SECONDS):
                    seen, good = await work(), True
            except TimeoutError:
                seen, good = f"{await self._modes()}; {await self._reason()}", False
            self.steps.append(Step(name, seen, good, time.monotonic() - begun))
            told(self.steps[-1])
            if not good:
                return

    def _work(self) -> dict[str, Callable[[], Any]]:
        steps = {f"{percent} %": self._to(percent) for percent in self._plan.steps}
        return {
            "off": partial(self._verified, 0),
            "on": self._to(100),
            "compare": self._compared,
            **steps,
            "back": self._back,
        }

    def _to(self, percent: int) -> Callable[[], Any]:
        async def work() -> str:
            await set_percent(self._store, KIND, percent, by="rehearsal", settle_seconds=self._plan.settle_seconds)
            return await self._verified(percent)

        return work

    async def _back(self) -> str:
        await roll_back(self._store, KIND, by="rehearsal", reason="the rehearsal ends")
        return await self._verified(0)

    async def _verified(self, percent: int) -> str:
        """Wait until the change has settled, and every workflow's next event goes the way that it is to go."""
        while True:
            look = await self._store.look()
            rollout = look.rollouts.get(KIND, Rollout())
            if rollout.percent != percent:
                raise TimeoutError  # the guards rolled back
            if rollout.is_settled(look.now):
                break
            await asyncio.sleep(0.1)
        before = {workflow: len(events) for workflow, events in self._ledger.sent.items()}
        while len(before) < self._plan.publishers * self._plan.workflows or not self._as_wanted(rollout, before):
            await asyncio.sleep(0.1)
            before = before or dict.fromkeys(self._ledger.sent, 0)
            before |= {workflow: 0 for workflow in self._ledger.sent if workflow not in before}
        return await self._modes()

    def _as_wanted(self, rollout: Rollout, before: Mapping[str, int]) -> bool:
        settled = rollout.since + 10 * self._plan.settle_seconds
        for workflow, events in self._ledger.sent.items():
            fresh = events[before[workflow] + 1 :]
            wanted = writing(rollout, stream_of(workflow), settled)
            if not fresh or any(each.mode is not wanted for each in fresh):
                return False
        return True

    async def _compared(self) -> str:
        """Wait until a gateway's guards have compared enough and are content."""
        while True:
            note = (await self._store.notes()).get(KIND)
            if note is not None and note.health is not Health.UNKNOWN:
                break
            await asyncio.sleep(0.2)
        if note.health is Health.RED:
            raise TimeoutError
        found = note.readings
        return f"guards green: {found.compared} compared, {found.mismatched} differ, lag {found.lag_seconds:.3f} s"

    async def _reason(self) -> str:
        changes = [change for change in await self._store.changes() if change.action == "rollback"]
        return f"rolled back: {changes[-1].reason}" if changes else "not reached in time"

    async def _modes(self) -> str:
        modes = list(self._ledger.last_modes().values())
        return ", ".join(f"{modes.count(mode)} workflows {mode}" for mode in Mode if modes.count(mode))

    async def judge(self) -> dict[str, Verdict]:
        """What an old subscriber heard and what the streams hold, against all that was published."""
        streams: dict[str, list[int]] = {}
        for workflow in self._ledger.sent:
            streams[workflow] = await self._numbers(stream_of(workflow))
        return {
            "old subscriber": self._ledger.judge_channels(self._old.seen),
            "streams": self._ledger.judge_streams(streams),
            "viewers": self._ledger.judge_viewers(self._viewers.seen, self._plan.viewed),
        }

    async def _numbers(self, stream: StreamName) -> list[int]:
        numbers: list[int] = []
        page = await self._log.range(stream, limit=1_000)
        while page.records:
            numbers += [msgspec.json.decode(record.data)["n"] for record in page.records]
            last = page.records[-1].id
            page = await self._log.range(stream, start=type(last)(last.ms, last.seq + 1), limit=1_000)
        return numbers

    async def recorded(self) -> int:
        """How many changes are in `system:rollout`."""
        return len((await self._log.range(CHANGE_STREAM)).records)


async def rehearse(folder: Path, plan: Plan, told: Callable[[Step], None]) -> tuple[list[Step], dict[str, Verdict]]:
    """Rehearse with a Redis, a gateway and publishers of its own, which are gone afterwards.

    Raises:
        ConfigError: there is no Redis program that could run.
    """
    redis = EmbeddedRedis(folder)
    await redis.start()
    try:
        ledger, store, log = Ledger(), RedisRollout(redis.url), RedisLog.connect(redis.url)
        try:
            async with AsyncExitStack() as stack:
                served = await stack.enter_async_context(gateway(redis.url, folder))
                old = await stack.enter_async_context(old_subscriber(redis.url))
                watching = await stack.enter_async_context(viewers(served, plan.viewed))
                running = Rehearsal(plan, store, log, ledger, old, watching)
                async with AsyncExitStack() as publishing:
                    for number in range(plan.publishers):
                        name = f"flow-{number}"
                        made = publisher(redis.url, name, ledger, workflows=plan.workflows, rate=plan.rate)
                        await publishing.enter_async_context(made)
                    await running.run(told)
                verdicts = await _judged(running)
        finally:
            await log.aclose()
            await store.aclose()
        return running.steps, verdicts
    finally:
        await redis.stop()


async def _judged(running: Rehearsal) -> dict[str, Verdict]:
    """The last messages may still be on their way to the subscriber."""
    for _ in range(20):
        verdicts = await running.judge()
        if all(verdict.good for verdict in verdicts.values()):
            break
        await asyncio.sleep(0.1)
    return verdicts
