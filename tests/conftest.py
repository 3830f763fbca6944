"""What every test gets: shared fixtures, a watch for blocking calls, and a session that leaves nothing behind."""

from __future__ import annotations

import os

# What the developer has set for another purpose must not change what the tests see.
for _name in (
    "REDIS_URL",
    "REDIS_STREAM_ENABLED",
    "DATABASE_URL",
    *(name for name in os.environ if name.startswith("TAILRACE_")),
):
    os.environ.pop(_name, None)

pytest_plugins = (
    "tests.support.proxy",
    "tests.support.leaks",
    "tests.support.blocking",
    "tests.support.redis_servers",
    "tests.support.redis_topologies",
    "tests.support.databases",
)
