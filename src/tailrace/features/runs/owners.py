"""Who owns a run, remembered for a moment: asked for every request and every recheck of what is read live.

That a run is not there is never remembered: it may be made by another gateway just now, and who is told 404 then loses
events or stays away.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tailrace.errors import DatabaseUnavailable, RunNotFound
from tailrace.features.runs.model import Run

__all__ = ["RecentRuns"]

FRESH_SECONDS = 2.0
"""With the gateway's recheck of at most 2 s more, a changed owner is noticed within 5 s."""
STALE_SECONDS = 3_600.0
"""While the database is away, what was known is believed for so long: readers stay served."""
MOST = 10_000


class RecentRuns:
    """A small cache of rows."""

    def __init__(self, get: Callable[[str], Awaitable[Run]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._get = get
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Run]] = OrderedDict()

    async def find(self, run_id: str, *, stale: bool = False, fresh: bool = False) -> Run | None:
        """A run as it was a moment ago; None: there is none.

        Args:
            run_id: which.
            stale: an older answer will do where the database is away. Only for who may read or write the run.
            fresh: one of a moment ago will not do where it is there.

        Raises:
            DatabaseUnavailable: it does not answer, and nothing is known.
        """
        now = self._clock()
        at, run = self._known.get(run_id, (0.0, None))
        if not fresh and run is not None and now - at < FRESH_SECONDS:
            return run
        try:
            return await self._ask(run_id)
        except DatabaseUnavailable:
            if stale and run is not None and now - at < STALE_SECONDS:
                return run
            raise

    async def owns(self, run_id: str, sub: str) -> bool:
        """Whether a run is somebody's; while the database is away, an older answer will do for its owner.

        Only the owner is answered from memory. To all others that would tell, by its time or while the database is
        away, that the run is there and was just read.

        Raises:
            DatabaseUnavailable: it does not answer.
        """
        _, known = self._known.get(run_id, (0.0, None))
        remembered = known is not None and known.owner == sub
        run = await self.find(run_id, stale=remembered, fresh=not remembered)
        return run is not None and run.owner == sub

    async def _ask(self, run_id: str) -> Run | None:
        try:
            found = await self._get(run_id)
        except RunNotFound:
            self.forget(run_id)
            return None
        self._remember(run_id, found)
        return found

    def forget(self, run_id: str) -> None:
        """Ask again next time: it was just changed here."""
        self._known.pop(run_id, None)

    def _remember(self, run_id: str, run: Run) -> None:
        self._known[run_id] = (self._clock(), run)
        self._known.move_to_end(run_id)
        while len(self._known) > MOST:
            self._known.popitem(last=False)
