"""For the tests of applications that use tailrace: the real client on a log in memory, nothing to start or to mock.

async def test_progress_is_published():
    async with memory_tailrace() as client:
        await my_code(client)
        records = await take(client.subscribe("run:42"), 3)
        assert [record.type for record in records] == ["run.started", "step", "run.exited"]
"""

from __future__ import annotations

from tailrace.testing.memory import memory_log, memory_tailrace, take

__all__ = ["memory_log", "memory_tailrace", "take"]
