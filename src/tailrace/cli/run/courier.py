"""Beside a session: deliver what it records, and what others left; say what stands in the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from tailrace.cli.console import complain, say
from tailrace.cli.run.registration import Registration, RunLabel, registration_at
from tailrace.cli.run.session import Recorder, Session
from tailrace.cli.target import Target
from tailrace.client.client import open_backend
from tailrace.client.delivery import Delivery
from tailrace.client.spool import Entry, SpoolFile, orphans
from tailrace.errors import TailraceError, WouldBlock
from tailrace.features.runs.ending import RunEnd

__all__ = ["Courier"]


class Courier:
    """Delivers what the session records, and what others left in the same folder."""

    def __init__(
        self, target: Target, folder: Path, spool: SpoolFile, recorder: Recorder, run: RunLabel | None = None
    ) -> None:
        self._target = target
        self._folder = folder
        self._spool = spool
        self._recorder = recorder
        self._run = run
        self._refused: TailraceError | None = None
        self._trouble: TailraceError | None = None
        self._told = True

    async def accompany(self, session: Session, wait: float) -> int:
        """Run the session beside the deliveries; afterwards wait a while for what is left. Return the exit code."""
        backend = open_backend(self._target.url, self._target.token or "")
        others = list(orphans(self._folder, self._target.spool_target(self._folder)))
        mine = Delivery(backend, self._spool, threaded=False, on_refused=self._on_refused, on_trouble=self._on_trouble)
        deliveries = [mine, *(Delivery(backend, other, threaded=False) for other in others)]
        self._recorder.on_put = mine.wake
        tasks = [asyncio.create_task(delivery.run()) for delivery in deliveries]
        registration = registration_at(backend, self._run) if self._run is not None else None
        keeping = []
        if registration is not None:
            session.before_end = registration.wait_tried
            keeping.append(asyncio.create_task(registration.keep(self._registered, session.cancel)))
        try:
            code = await session.run()
            end = registration.end(code, session.signal_name) if registration is not None else None
            if end is not None:
                self._note(end, end.note())
            until = asyncio.get_running_loop().time() + wait
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    left = [
                        self._settle(each, tasks, registration)
                        for each in zip(deliveries, (None, *others), strict=True)
                    ]
                    await asyncio.gather(*left)
            if registration is not None and end is None:
                # The server came back meanwhile: then it is a run of ours after all, and would be lost.
                end = registration.end(code, session.signal_name)
            if registration is not None and end is not None:
                delivered = not self._spool.pending
                self._told = await registration.finish(end, delivered=delivered, until=until)
                if self._told and delivered:
                    self._note(end, None)
        finally:
            for task in (*tasks, *keeping):
                task.cancel()
            await asyncio.gather(*tasks, *keeping, return_exceptions=True)
            await backend.aclose()
            for spool in (self._spool, *others):
                spool.close()
            self._report()
        return code

    async def _settle(
        self,
        one: tuple[Delivery, SpoolFile | None],
        tasks: Sequence[asyncio.Task[None]],
        registration: Registration | None,
    ) -> None:
        """Wait until a file is delivered; another command's has that one's end, too."""
        delivery, other = one
        await _first_of(delivery.wait_empty(), tasks)
        if other is not None and registration is not None:
            await registration.tell_left(other)

    def _note(self, end: RunEnd, text: str | None) -> None:
        with contextlib.suppress(WouldBlock):  # a full disk: then the run is lost, if nobody can be told
            self._spool.note(end.key, text)

    def _registered(self, epoch: int) -> None:
        self._recorder.epoch = epoch
        self._recorder.closes = False

    def _on_refused(self, entry: Entry, error: TailraceError) -> None:
        if self._refused is None:
            self._refused = error
            complain(f"{entry.s} does not take this: {error}")

    def _on_trouble(self, error: TailraceError | None) -> None:
        if error is not None and self._trouble is None:
            say(f"not delivered for now, the output is kept on disk: {error}", style="yellow")
        elif error is None and self._trouble is not None:
            say("delivery goes on", style="green")
        self._trouble = error

    def _report(self) -> None:
        if self._spool.pending:
            why = f": {self._trouble}" if self._trouble is not None else ""
            complain(
                f"{self._spool.pending} events are not delivered yet{why}",
                f"they are kept in {self._folder}; the next `tailrace exec` delivers them",
            )
        if not self._told:
            complain(
                "how the run ended could not be told",
                f"it is kept in {self._folder}; the next `tailrace exec` tells it",
            )
        if self._recorder.lost:
            complain(f"{self._recorder.lost} pieces of output were not recorded: the spool was full")


async def _first_of(waiting: Coroutine[Any, Any, None], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for a delivery, but not for one whose task has died."""
    waiter = asyncio.ensure_future(waiting)
    try:
        done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        waiter.cancel()
