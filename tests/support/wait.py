"""Waiting in tests: for a condition, up to a deadline; never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["deadline", "eventually", "eventually_sync"]

T = TypeVar("T")


def deadline(seconds: float = 15.0) -> asyncio.Timeout:
    """Fail what is inside `async with deadline():` with TimeoutError when it takes longer."""
    return asyncio.timeout(seconds)


async def eventually(predicate: Callable[[], Any], timeout: float = 15.0, *, every: float = 0.01) -> Any:
    """Ask, by a function or a coroutine function, until the answer is true, and return it.

    An AssertionError inside the predicate counts as "not yet"; the last one is shown when time is up.
    """
    end = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            answer = predicate()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            last = value
        except AssertionError as exc:
            last = exc
        if time.monotonic() >= end:
            raise AssertionError(f"not within {timeout} s; last: {last!r}")
        await asyncio.sleep(every)


def eventually_sync(predicate: Callable[[], T], timeout: float = 15.0, *, every: float = 0.01) -> T:
    """`eventually` without an event loop."""
    end = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() >= end:
            raise AssertionError(f"not within {timeout} s; last: {value!r}")
        time.sleep(every)
    return value
