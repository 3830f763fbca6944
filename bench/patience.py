"""Waiting out a Redis that gets no CPU for a moment: what that takes is part of what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from tailrace.errors import LogUnavailable

__all__ = ["patient"]

P = ParamSpec("P")
T = TypeVar("T")
TRIES = 20


async def patient(work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call until it is answered, `TRIES` times more at most.

    Raises:
        LogUnavailable: still not.
    """
    for _ in range(TRIES):
        try:
            return await work(*args, **kwargs)
        except LogUnavailable as exc:
            await asyncio.sleep(exc.retry_after)
    return await work(*args, **kwargs)
