"""What every test gets: shared fixtures, a watch for blocking calls, and a session that leaves nothing behind."""

from __future__ import annotations

pytest_plugins = (
    "tests.support.leaks",
    "tests.support.blocking",
    "tests.support.redis_servers",
    "tests.support.redis_topologies",
)
