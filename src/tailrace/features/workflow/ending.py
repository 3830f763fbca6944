"""What the end of a workflow does to its stream."""

from __future__ import annotations

import logging

from tailrace.core.names import StreamName
from tailrace.errors import LogError
from tailrace.eventlog.base import Log
from tailrace.features.workflow.message import ENDED_SECONDS

__all__ = ["let_expire"]

log = logging.getLogger("tailrace.workflow")


async def let_expire(event_log: Log, stream: StreamName) -> None:
    """Give a stream the life of one whose workflow has ended. Where that fails, it stays as it was."""
    try:
        await event_log.expire(stream, ENDED_SECONDS, sliding=True)
    except LogError as exc:
        log.warning("the stream's life was not set", extra={"stream": stream, "error": str(exc)})
