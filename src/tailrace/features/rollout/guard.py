"""The guards: in the gateway that leads they compare, judge, roll back, and let a holding rollout go on.

Rules of this file
1. One gateway leads, by a lease of `LEAD_SECONDS`; when it dies another begins, with an empty window.
2. Every gateway hears what processes report about publishing; only the leader acts on it.
3. While Redis does not answer, and for `EXCUSED_SECONDS` after, nothing is judged: what fails then fails on both ways.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable

import msgspec

from tailrace.core.comparison import LEAST_WINDOW_SECONDS, Counts
from tailrace.core.rollout import GuardLimits, Health, Readings, Rollout, Verdict, judge, next_step
from tailrace.errors import Conflict, LogError, LogUnavailable
from tailrace.eventlog.base import Log
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tailrace.eventlog.rollout import GuardNote, PublishReport
from tailrace.features.rollout.changing import roll_back, set_percent, tell_changes
from tailrace.features.rollout.meters import Meters
from tailrace.features.rollout.shadow import Shadow
from tailrace.features.rollout.view import RolloutView
from tailrace.hub.hub import Hub

__all__ = ["Guard"]

log = logging.getLogger("tailrace.rollout")

LEAD_SECONDS = 10.0
TICK_SECONDS = 0.5
EXCUSED_SECONDS = 5.0
FACTS_EVERY = 10
"""Ticks between questions about memory and lengths."""
LENGTHS = 20
"""Streams whose lengths are asked for, the ones heard last."""
OTHER = "other"
"""Kinds that nobody ever moved, in the metrics."""
_REPORT = msgspec.json.Decoder(PublishReport)


class _Publishing:
    """What processes reported about one kind, in the guards' window."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._reports: deque[tuple[float, PublishReport]] = deque()

    def add(self, report: PublishReport, now: float) -> None:
        self._reports.append((now, report))
        while self._reports and now - self._reports[0][0] > self._window_seconds:
            self._reports.popleft()

    def newest(self, begin: float, now: float, *, enough: int) -> tuple[int, int]:
        """Tries and errors since `begin`, the newest only where they are `enough`."""
        published = errors = 0
        for at, report in reversed(self._reports):
            if at < begin or (now - at > LEAST_WINDOW_SECONDS and published >= enough):
                break
            published, errors = published + report.published, errors + report.errors
        return published, errors


class Guard:
    """See the rules above. `run` owns everything.

    Args:
        view: what is known; its store is changed.
        event_log: has the streams, and takes the record of changes.
        hub: reads the streams for the comparison.
        template_of: a kind's old channels, with `{id}`.
        limits: from where on to roll back.
        meters: what is shown.
    """

    def __init__(
        self,
        view: RolloutView,
        event_log: Log,
        hub: Hub,
        *,
        template_of: Callable[[str], str],
        meters: Meters,
        limits: GuardLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.me = f"{socket.gethostname()}:{view.store.name}"
        self.leads = False
        self.verdicts: dict[str, Verdict] = {}
        self._view = view
        self._store = view.store
        self._log = event_log
        self._hub = hub
        self._template_of = template_of
        self._meters = meters
        self._limits = limits if limits is not None else GuardLimits()
        self._clock = clock
        self._channels = Channels(view.store.topology)
        self._shadows: dict[str, tuple[Shadow, asyncio.Task[None]]] = {}
        self._publishing: dict[str, _Publishing] = {}
        self._counted: dict[str, Counts] = {}
        self._ticks = 0
        self._excused_until = 0.0

    async def run(self) -> None:
        """Guard until cancelled."""
        reports = Listener(self._channels, prefix=self._store.prefix, on_message=self._heard, on_link=self._link)
        await self._view.wait_moved()  # where nobody ever moved anything, guards cost nothing
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(reports.run(), name="rollout reports")
                group.create_task(self._subscribe(reports), name="rollout reports' channel")
                while True:
                    await self._turn(group)
                    await asyncio.sleep(TICK_SECONDS)
        finally:
            await self._channels.aclose()

    async def _subscribe(self, reports: Listener) -> None:
        while True:
            try:
                return await reports.subscribe(self._store.reports)
            except LogUnavailable:
                await asyncio.sleep(TICK_SECONDS)

    def _link(self, up: bool) -> None:
        if not up:
            self._excuse()

    def _excuse(self) -> None:
        self._excused_until = self._clock() + EXCUSED_SECONDS
        self._publishing.clear()
        for shadow, _ in self._shadows.values():
            shadow.restart()

    def _heard(self, channel: bytes, message: bytes) -> None:
        del channel
        try:
            report = _REPORT.decode(message)
        except msgspec.MsgspecError:
            log.warning("a report of publishing cannot be read")
            return
        if report.kind not in self._view.kinds:
            # Whoever may publish could have us keep any number of names.
            self._meters.count_report(msgspec.structs.replace(report, kind=OTHER))
            return
        self._meters.count_report(report)
        if self._clock() >= self._excused_until:
            window = self._limits.window_seconds
            self._publishing.setdefault(report.kind, _Publishing(window)).add(report, self._clock())

    # -- one turn ---------------------------------------------------------------------------------------------------

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        for kind in self._view.kinds:
            self._meters.set_rollout(kind, self._view.rollout_of(kind))
        try:
            led, self.leads = self.leads, await self._store.lead(self.me, LEAD_SECONDS)
            self._meters.set_leader(leads=self.leads)
            if self.leads and not led:
                log.info("the guards of this gateway decide about rollouts")
            self._keep_shadows(group)
            if self.leads:
                await self._guard()
        except Conflict as exc:
            log.info("the guards could not act", extra={"error": str(exc)})
        except LogError as exc:
            log.info("the guards could not act", extra={"error": str(exc)})
            self._excuse()

    def _keep_shadows(self, group: asyncio.TaskGroup) -> None:
        """Compare what moves, and nothing else."""
        wanted = {kind for kind in self._view.kinds if self.leads and _moves(self._view.rollout_of(kind))}
        for kind in [kind for kind, (_, task) in self._shadows.items() if kind not in wanted or task.done()]:
            self._shadows.pop(kind)[1].cancel()
            self._counted.pop(kind, None)
            self._meters.forget_guard(kind)
        for kind in wanted - set(self._shadows):
            shadow = Shadow(
                kind,
                view=self._view,
                hub=self._hub,
                channels=self._channels,
                template=self._template_of(kind),
                prefix=self._store.prefix,
                clock=self._clock,
                limits=self._limits,
            )
            self._shadows[kind] = shadow, group.create_task(shadow.run(), name=f"shadow {kind}")

    async def _guard(self) -> None:
        self._ticks += 1
        if self._hub.degraded:
            self._excuse()
        if self._ticks % FACTS_EVERY == 1:
            await tell_changes(self._store, self._log)
            await self._facts()
        for kind, (shadow, _) in list(self._shadows.items()):
            rollout = self._view.rollout_of(kind)
            readings = self._readings(kind, shadow, rollout)
            excused = self._clock() < self._excused_until
            verdict = Verdict(Health.UNKNOWN) if excused else judge(readings, self._limits)
            self._show(kind, verdict, readings, shadow)
            if verdict.roll_back:
                await self._roll_back(kind, verdict)
            else:
                await self._advance(kind, rollout, verdict.health)
            try:
                await self._note(kind, verdict, readings)
            except LogUnavailable:
                log.info("what the guards said could not be kept", extra={"kind": kind})

    def _readings(self, kind: str, shadow: Shadow, rollout: Rollout) -> Readings:
        """What was seen since the last change: the change before may have been rolled back for what was seen then."""
        now = self._clock()
        begin = now - (self._view.now() - rollout.since)
        published = errors = 0
        if kind in self._publishing:
            enough = self._limits.least_published
            published, errors = self._publishing[kind].newest(begin, now, enough=enough)
        found = shadow.comparison.readings(now, enough=self._limits.least_compared)
        return msgspec.structs.replace(found, published=published, publish_errors=errors)

    async def _roll_back(self, kind: str, verdict: Verdict) -> None:
        reason = "; ".join(verdict.reasons)
        change = await roll_back(self._store, kind, by=f"guards@{socket.gethostname()}", reason=reason)
        if change is not None:
            log.error("the guards rolled back", extra={"kind": kind, "reason": reason})
            self._meters.rollbacks.labels(kind).inc()
            await self._view.look()
            await tell_changes(self._store, self._log)

    async def _advance(self, kind: str, rollout: Rollout, health: Health) -> None:
        step = next_step(rollout, health, self._view.now())
        if step is not None:
            by, reason = f"hold@{socket.gethostname()}", f"{rollout.by} said to go on, and the guards are green"
            change = await set_percent(
                self._store, kind, step, by=by, reason=reason, hold_seconds=rollout.hold_seconds, action="advance"
            )
            if change is not None:
                await self._view.look()
                await tell_changes(self._store, self._log)

    # -- what is shown ----------------------------------------------------------------------------------------------

    def _show(self, kind: str, verdict: Verdict, readings: Readings, shadow: Shadow) -> None:
        self.verdicts[kind] = verdict
        self._meters.set_guard(kind, verdict.health, readings)
        total, before = shadow.comparison.total, self._counted.get(kind, Counts())
        fresh = Counts(*(getattr(total, name) - getattr(before, name) for name in total.__struct_fields__))
        self._counted[kind] = msgspec.structs.replace(total)
        self._meters.count_compared(kind, fresh)

    async def _note(self, kind: str, verdict: Verdict, readings: Readings) -> None:
        note = GuardNote(
            health=verdict.health, reasons=verdict.reasons, readings=readings, at=self._view.now(), by=self.me
        )
        await self._store.note(kind, note)

    async def _facts(self) -> None:
        memory, limit = await self._store.memory()
        self._meters.memory.set(memory)
        self._meters.max_memory.set(limit)
        for kind, (shadow, _) in self._shadows.items():
            infos = [await self._log.info(stream) for stream in shadow.streams[-LENGTHS:]]
            self._meters.longest.labels(kind).set(max((info.length for info in infos), default=0))


def _moves(rollout: Rollout) -> bool:
    return rollout.percent > 0 and not rollout.finalized
