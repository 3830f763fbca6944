"""Leases of runs on Redis: one script (lua/leases/runs.lua), all keys in one slot.

<prefix>runs:{leases}          zset: run → until when its producer lives, ms
<prefix>runs:{leases}:epoch    hash: run → epoch of the claim
<prefix>runs:{leases}:cancel   zset: runs that are wanted to end → until when that is remembered
<prefix>runs:{leases}:ended    zset: runs that ended → until when that is remembered
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailrace.eventlog.redis.calls import Calls, load_script
from tailrace.eventlog.run_leases import KEEP_SECONDS, Held, Renewal

__all__ = ["RedisRunLeases"]

load_script("leases", "runs")  # at import, not in the event loop

BATCH = 500
"""Runs of one script call: a longer one would hold up everybody's appends."""


class RedisRunLeases:
    """See `RunLeases` (run_leases.py) for what every method promises."""

    def __init__(self, calls: Calls, *, prefix: str = "tailrace:") -> None:
        """Nothing is connected yet; whoever made `calls` closes them."""
        self._calls = calls
        key = f"{prefix}runs:{{leases}}"
        self._keys = (key, f"{key}:epoch", f"{key}:cancel", f"{key}:ended")

    async def renew(self, held: Sequence[Held], seconds: float) -> list[Renewal]:
        """See `RunLeases`."""
        return await self._renew("renew", held, seconds)

    async def keep(self, held: Sequence[Held], seconds: float) -> list[Renewal]:
        """See `RunLeases`."""
        return await self._renew("keep", held, seconds)

    async def _renew(self, what: str, held: Sequence[Held], seconds: float) -> list[Renewal]:
        answers: list[Renewal] = []
        for words in _batches(held):
            answers += [Renewal(each) for each in await self._script(what, seconds, *words)]
        return answers

    async def cancel(self, run_id: str) -> None:
        """See `RunLeases`."""
        await self._script("cancel", KEEP_SECONDS, run_id)

    async def end(self, run_id: str) -> None:
        """See `RunLeases`."""
        await self._script("end", KEEP_SECONDS, run_id)

    async def watch(self, held: Sequence[Held], seconds: float) -> None:
        """See `RunLeases`."""
        for words in _batches(held):
            await self._script("watch", seconds, *words)

    async def expired(self, limit: int) -> list[Held]:
        """See `RunLeases`."""
        found = await self._script("expired", 0, min(limit, BATCH))
        return [(run_id.decode(), int(epoch)) for run_id, epoch in zip(found[::2], found[1::2], strict=True)]

    async def alive(self, run_ids: Sequence[str]) -> list[bool]:
        """See `RunLeases`."""
        found: list[bool] = []
        for at in range(0, len(run_ids), BATCH):
            found += [bool(each) for each in await self._script("alive", 0, *run_ids[at : at + BATCH])]
        return found

    async def _script(self, what: str, seconds: float, *words: str | int) -> Any:
        return await self._calls.script(
            load_script("leases", "runs"),
            self._keys,
            (what, round(seconds * 1_000), round(KEEP_SECONDS * 1_000), *words),
        )


def _batches(held: Sequence[Held]) -> list[list[str | int]]:
    return [[word for each in held[at : at + BATCH] for word in each] for at in range(0, len(held), BATCH)]
