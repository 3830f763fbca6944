"""On a real Sentinel set: what a fail-over loses is announced; with min-replicas it is refused instead."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tailrace.core.event import GapReason
from tests.chaos.nemesis import Step
from tests.chaos.topologies import TWO_MASTERS, SentinelArena, lost_of, sentinel_arena


async def steps(arena: SentinelArena, began: list[int]) -> AsyncIterator[Step]:
    """Fail-overs; the last one when the master wants a replica. `began` gets the number of the first attempt then."""
    yield Step(("ordered_failover",), "sentinel-1", 0.2)
    yield Step(("lagging_failover",), "sentinel-2", 0.2)
    for server in arena.set.servers:
        await server.cli("CONFIG", "SET", "min-replicas-to-write", "1")
    # A server that was restarted would forget it.
    for server in arena.set.servers:
        server.configure({"min-replicas-to-write": "1"})
    arena.board.fault = "guarded"
    await arena.progress(1)
    began.append(len(arena.board.attempts))
    yield Step(("lagging_failover",), "sentinel-3", 0.2)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_fail_over_loses_with_a_word_or_refuses() -> None:
    began: list[int] = []
    async with sentinel_arena() as made:
        result = await made.run(1, steps(made, began))

    lost = lost_of(result)
    reasons = {gap.reason for walk in result.walks for gap in walk.gaps}
    assert result.kinds() <= TWO_MASTERS, "\n".join(map(str, result.violations[:20]))
    assert lost, "the fault had no effect"
    assert GapReason.RESET in reasons
    assert reasons <= {GapReason.RESET, GapReason.AHEAD}
    assert [number for number in lost if number >= began[0]] == [], "lost although a replica was wanted"
