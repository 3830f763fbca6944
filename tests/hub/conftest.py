"""A hub over a log in memory, for tests that need nothing special of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tailrace.core.kinds import Kinds
from tailrace.eventlog.memory import MemoryLog
from tests.hub.support import Hubbed, hub_over


@pytest.fixture
async def hubbed() -> AsyncIterator[Hubbed]:
    kinds = Kinds()
    async with hub_over(MemoryLog(kinds=kinds), kinds) as made:
        yield made
