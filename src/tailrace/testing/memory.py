"""A client on a log in memory, and what tests do with subscriptions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.client.subscription import Subscription
from tailrace.core.event import Item
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.eventlog.memory import MemoryLog

__all__ = ["memory_log", "memory_tailrace", "take"]


def memory_log(kinds: Iterable[StreamKind] = (), *, clock: Callable[[], float] = time.time) -> MemoryLog:
    """A log that keeps all the promises of the one on Redis, in this process. Close it with `aclose`.

    Args:
        kinds: policies beside the default ones.
        clock: Unix time in seconds; retention and expiry follow it.
    """
    return MemoryLog(kinds=Kinds(kinds), clock=clock)


def memory_tailrace(
    log: MemoryLog | None = None, *, kinds: Iterable[StreamKind] = (), clock: Callable[[], float] = time.time
) -> Tailrace:
    """A client that works as usual and needs no server.

    Args:
        log: a log to share between several clients, made with `memory_log`; it stays open. Without: a new one.
        kinds: as for `memory_log`.
        clock: as for `memory_log`.
    """
    policies = Kinds(kinds)
    if log is not None:
        return Tailrace.on(DirectLog.on(log, policies))

    async def made() -> MemoryLog:
        return MemoryLog(kinds=policies, clock=clock)

    return Tailrace.on(DirectLog(made, policies))


async def take(subscription: Subscription, count: int, *, timeout_seconds: float = 5.0) -> list[Item]:
    """The next items of a subscription; fewer only when every stream has ended.

    Raises:
        AssertionError: they did not come in time; says what did.
    """
    items: list[Item] = []
    try:
        async with asyncio.timeout(timeout_seconds):
            while len(items) < count:
                item = await anext(subscription, None)
                if item is None:
                    break
                items.append(item)
    except TimeoutError:
        raise AssertionError(f"{len(items)} of {count} items within {timeout_seconds} s: {items!r}") from None
    return items
