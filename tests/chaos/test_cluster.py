"""On a real Cluster: moved slots and ordered fail-overs lose nothing; what a killed node loses is announced."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chaos.nemesis import Step
from tests.chaos.topologies import ANNOUNCED, ClusterArena, acked, cluster_arena, lost_of, replicated


async def channels(arena: ClusterArena) -> int:
    """Subscriptions to sharded channels, on all nodes."""
    return sum([len(await node.cli("PUBSUB", "SHARDCHANNELS")) for node in arena.cluster.nodes])


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_only_what_a_killed_node_did_not_pass_on_is_lost_and_that_is_announced() -> None:
    before: set[int] = set()

    async def steps() -> AsyncIterator[Step]:
        yield Step(("slot_move",), "cluster-1", 0.2)
        yield Step(("node_failover",), "cluster-2", 0.2)
        assert await channels(made) > 0, "pushes do not come by sharded channels"
        assert not [gap for reader in made.readers for gap in reader.walk.gaps], "a gap where nothing was lost"
        before.update(acked(made.board))
        await replicated(made.cluster.nodes)
        yield Step(("node_lags",), "cluster-3", 0.2)

    async with cluster_arena() as made:
        result = await made.run(1, steps())

    lost = lost_of(result)
    assert result.kinds() <= ANNOUNCED, "\n".join(map(str, result.violations[:20]))
    assert lost, "the fault had no effect"
    assert before, "nothing was acknowledged before the fault"
    assert [number for number in lost if number in before] == [], "lost by a move or an ordered fail-over"
    assert [gap for walk in result.walks for gap in walk.gaps]
