"""The harness sees loss and duplicates where they are to be expected: in set-ups that promise nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chaos.arena import arena
from tests.chaos.nemesis import Step

ANNOUNCED = {"lost", "vanished"}
"""What a log that forgets does to a run, if everybody is told."""


async def these(*names: str) -> AsyncIterator[Step]:
    for number, name in enumerate(names):
        yield Step((name,), f"unsafe-{number}", 0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["nothing", "snapshots"])
async def test_a_redis_that_forgets_is_seen_to_lose_and_tells_every_reader(mode: str) -> None:
    save = '""' if mode == "nothing" else "1 1"
    async with arena(redis={"appendonly": "no", "save": save}) as made:
        result = await made.run(1, these("redis_kill", "redis_kill"))

    assert "lost" in result.kinds()
    assert result.kinds() <= ANNOUNCED, "\n".join(map(str, result.violations[:20]))
    gaps = [gap for walk in result.walks for gap in walk.gaps]
    assert gaps
    assert {gap.reason for gap in gaps} <= {"reset", "ahead"}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_retries_without_a_uid_are_seen_to_double() -> None:
    async with arena(named=False) as made:
        result = await made.run(1, these("lost_replies", "lost_replies", "gateway_kill"))

    assert result.kinds() == {"doubled"}, "\n".join(map(str, result.violations[:20]))
