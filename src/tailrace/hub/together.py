"""Several things at once, in the name of one caller.

Not a `TaskGroup`: before Python 3.13, whose documentation says what changed, one whose child fails while it waits
leaves its task marked as cancelled (`Task.cancelling`), so that an `asyncio.timeout` around it ends in a cancellation;
and a caller that is cancelled while the other children end is told of the child's error only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["together"]


async def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run them at once. When one fails the others are cancelled, and its error is raised when they have ended.

    Cancelled: they are, too, and have ended before the caller goes on; unless it is cancelled once more.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        errors = {task: task.exception() for task in tasks if not task.cancelled()}
    for task in tasks:
        if task in done and (error := errors.get(task)) is not None:
            raise error
