"""A blocking call inside the event loop stops every reader of the process: in tests it raises `BlockingError`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster

__all__: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Raise where code of tailrace blocks the loop. Only our own frames count: third parties do as they like.

    Imports on first use are allowed: `import tailrace` is quick because of them.
    """
    guard = BlockBuster("tailrace")
    for function in guard.functions.values():
        function.can_block_in("<frozen importlib._bootstrap>", "_find_and_load")
        # Migrations are commands with a loop of their own: MySQL's driver has no other way.
        function.can_block_in("tailrace/sql/migrate.py", {"work", "compare"})
    guard.activate()
    yield
    guard.deactivate()
