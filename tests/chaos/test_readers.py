"""Readers leave nothing open, however often they are cut."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.judge import Board, Walk
from tests.chaos.readers import Reader


class _Visitor(Reader):
    """Takes its time to leave."""

    def __init__(self) -> None:
        super().__init__(lambda: "http://127.0.0.1:1", Walk(Board(), "reader", "none", ()), "")
        self.here, self.left = asyncio.Event(), asyncio.Event()

    async def visit(self) -> None:
        self.here.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.left.set()


@pytest.mark.parametrize("turns", range(4))
async def test_who_is_cut_again_while_it_leaves_has_left_altogether(turns: int) -> None:
    reader = _Visitor()
    running = asyncio.create_task(reader.run())
    await reader.here.wait()

    reader.cut()
    for _ in range(turns):
        await asyncio.sleep(0)
    reader.cut()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert reader.left.is_set()
