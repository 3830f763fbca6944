"""The log in memory."""

from __future__ import annotations

from tailrace.eventlog.memory.log import MemoryLog
from tailrace.eventlog.memory.tail import MemoryTail

__all__ = ["MemoryLog", "MemoryTail"]
