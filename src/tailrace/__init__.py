"""Durable, resumable, live event streams for Python applications, on Redis Streams.

Names are resolved on first use, so that `import tailrace` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailrace.client.client import Tailrace
    from tailrace.client.sync import TailraceSync
    from tailrace.core.event import Event, Gap, Record
    from tailrace.core.ids import EntryId
    from tailrace.core.names import StreamName
    from tailrace.errors import TailraceError

__all__ = [
    "EntryId",
    "Event",
    "Gap",
    "Record",
    "StreamName",
    "Tailrace",
    "TailraceError",
    "TailraceSync",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {
    "EntryId": "tailrace.core.ids",
    "Event": "tailrace.core.event",
    "Gap": "tailrace.core.event",
    "Record": "tailrace.core.event",
    "StreamName": "tailrace.core.names",
    "Tailrace": "tailrace.client.client",
    "TailraceError": "tailrace.errors",
    "TailraceSync": "tailrace.client.sync",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tailrace' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
