"""The short form of the chaos run: every fault, two schedules that are always the same, nothing violated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from tests.chaos.arena import arena
from tests.chaos.nemesis import FAULTS, Step, plan
from tests.chaos.report import Goal

# With `everysec` Redis holds back its writes while an fsync is under way: on a slow disk a kill may lose them.
UNSYNCED = (
    *("redis_kill", "script_flush", "client_kill", "lost_replies", "silent_pushes"),
    *("gateway_kill", "client_storm", "stalled_clients", "lost_answers", "trimming", "slices", "worker_kill"),
    "no_descriptors",
)
ALWAYS = (
    *("redis_kill", "redis_pause", "client_pause", "out_of_memory", "overflow", "black_hole", "cut_replies"),
    *("latency", "gateway_stop", "rolling_restart", "publisher_kill", "removal", "eviction", "max_clients"),
    "gateway_freeze",
)


EFFECTS = {
    "overflow": "overflows",
    "out_of_memory": "refusals",
    "removal": "removals",
    "eviction": "evictions",
    "max_clients": "rejections",
    "worker_kill": "restarts",
}
"""What each of these must have brought about at the server."""


async def once(seed: int, names: Sequence[str]) -> AsyncIterator[Step]:
    """One round: every fault once."""
    left = set(names)
    for step in plan(seed, names, together=0.6):
        yield step
        left -= set(step.names)
        if not left:
            return


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "sync", "names"), [(3, "no", UNSYNCED), (4, "always", ALWAYS)], ids=["3", "4"])
async def test_nothing_is_lost_doubled_or_skipped_in_silence(seed: int, sync: str, names: Sequence[str]) -> None:
    async with arena(redis={"appendfsync": sync}) as made:
        result = await made.run(seed, once(seed, names))

    schedule = "\n".join(result.steps)
    assert not result.violations, f"seed {seed}\n{schedule}\n" + "\n".join(map(str, result.violations[:20]))
    assert Goal().thin(result.board, names) == [], schedule
    effects = {measure for _, part, measure in result.board.counts if part == "effect"}
    assert effects == {EFFECTS[name] for name in names if name in EFFECTS}, "a fault had no effect"


def test_every_fault_is_in_the_short_form() -> None:
    assert {*UNSYNCED, *ALWAYS} == set(FAULTS)


def test_a_seed_is_a_schedule() -> None:
    def first(seed: int) -> list[Step]:
        steps = plan(seed, list(FAULTS))
        return [next(steps) for _ in range(40)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert {name for step in first(1) for name in step.names} == set(FAULTS)
