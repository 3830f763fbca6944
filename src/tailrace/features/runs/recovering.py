"""The ends of runs that a process left on the disk: who delivers its events tells them, as their code said.

Rules of this file
1. After the events: the stream ends with the end.
2. Under the epoch of the run's claim: a run that was lost meanwhile, or taken over, stays what it is. The end that
   comes too late is logged and forgotten.
3. What cannot be told now is tried again; what a process does not get told stays in the file.
"""

from __future__ import annotations

import asyncio

from tailrace.client.backend import pause_before
from tailrace.client.spool import SpoolFile
from tailrace.errors import TailraceError
from tailrace.features.runs.backend import RunBackend
from tailrace.features.runs.ending import RunEnd, log_refused, passes

__all__ = ["HOLD_SECONDS", "tell_left"]

HOLD_SECONDS = 3_600.0
"""How long a gateway waits for what a dead producer left on its disk."""
PAUSE_SECONDS = 5.0


async def tell_left(backend: RunBackend, file: SpoolFile) -> int:
    """Tell the ends that are noted in a file all of whose events are settled. Answers how many came too late."""
    ends = [RunEnd.noted(key, text) for key, text in file.notes.items()]
    told = await asyncio.gather(*[_tell(backend, file, end) for end in ends if end is not None])
    return told.count(False)


async def _tell(backend: RunBackend, file: SpoolFile, end: RunEnd) -> bool:
    attempt, told = 0, True
    while True:
        try:
            if (await end.tell(backend)).sealed:
                break
        except TailraceError as exc:
            if not passes(exc):
                log_refused(end, exc)
                told = False
                break
        await asyncio.sleep(pause_before(attempt, cap=PAUSE_SECONDS))
        attempt += 1
    await asyncio.to_thread(file.note, end.key, None)
    return told
