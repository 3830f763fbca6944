"""What every test gets: shared fixtures, a watch for blocking calls, and a session that leaves nothing behind."""

from __future__ import annotations

import os
import signal

import pytest

# What the developer has set for another purpose must not change what the tests see.
for _name in (
    "REDIS_URL",
    "REDIS_STREAM_ENABLED",
    "DATABASE_URL",
    *(name for name in os.environ if name.startswith("TAILRACE_")),
):
    os.environ.pop(_name, None)

# Under nohup it is ignored, by all that is started here too, and a shell cannot trap what it was told to ignore.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = (
    "tests.support.proxy",
    "tests.support.leaks",
    "tests.support.blocking",
    "tests.support.redis_servers",
    "tests.support.redis_topologies",
    "tests.support.databases",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that all workers end together; chaos in between others, so that seldom two faults
    are tried at a time."""
    slow = dict.fromkeys(item.path for item in items if item.get_closest_marker("slow"))
    chaos = [path for path in slow if "chaos" in path.parts]
    others = [path for path in slow if "chaos" not in path.parts]
    place = {path: 3.0 * index for index, path in enumerate(chaos)}
    place |= {path: 1.5 * index + 1 for index, path in enumerate(others)}
    last = 3 * len(slow)
    items.sort(key=lambda item: place.get(item.path, last))
