"""What a run is made of: its streams, its transports, and how much is going on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.losses import REBORN_STREAM, TRIMMED_STREAM
from tests.chaos.writers import LENGTHS

__all__ = ["LOSSY", "PREFIX", "SECRET_STREAM", "STREAMS", "TRANSPORTS", "Load", "key_of"]

PREFIX = "chaos:"
STREAMS = ("run:a", "run:b", "run:c")
LOSSY = (TRIMMED_STREAM, REBORN_STREAM)
"""They lose records by design; the judge holds what was lost against what was told."""
SECRET_STREAM = "run:secret"
TRANSPORTS = ("sse", "sse-many", "ws", "ws-many", "poll", "poll-many", "client-http", "client-redis")


def key_of(stream: str) -> str:
    """What a stream's Redis keys begin with."""
    kind, _, name = stream.partition(":")
    return f"{PREFIX}{kind}:{{{name}}}"


@dataclass(frozen=True)
class Load:
    """How much is going on.

    Attributes:
        streams: where publishers and readers meet.
        lossy: those of them that lose records by design.
        sets: how many readers of every transport.
        more: how many more on the transports that are cheap to read.
        pause: seconds between two calls of a publisher, on average.
        batch: events in a call straight on Redis; over HTTP a fifth of it and a fifth as often, so that the last 1 024
            uids of a stream reach further back than the longest fault.
        rest: seconds between two long-polls of a reader.
        cuts: seconds between two lost connections, at least and at most.
        killed: whether publisher processes are killed.
        workers: how many processes each gateway has.
        lengths: what is kept, by kind of stream.
        seldom: how much longer the publisher of the stream that nobody may read pauses: that one is never trimmed.
    """

    streams: tuple[str, ...] = STREAMS
    lossy: tuple[str, ...] = LOSSY
    sets: int = 2
    more: int = 0
    pause: float = 0.12
    batch: int = 1
    rest: float = 0.1
    cuts: tuple[float, float] = (0.1, 0.5)
    killed: bool = True
    workers: tuple[int, int] = (1, 2)
    lengths: Mapping[str, int] = field(default_factory=lambda: LENGTHS)
    seldom: int = 1
