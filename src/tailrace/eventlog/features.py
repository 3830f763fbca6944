"""What a server can do, by its version and by asking it, and which mode of publishing that allows."""

from __future__ import annotations

import msgspec

from tailrace.errors import LogUnavailable
from tailrace.eventlog.check_facts import lines, within
from tailrace.eventlog.redis.connection import Connection, ReplyError
from tailrace.eventlog.redis.topology import Topology, open_topology

__all__ = ["STREAMS_SINCE", "ServerFeatures", "read_features"]

STREAMS_SINCE = (5, 0)


class ServerFeatures(msgspec.Struct, frozen=True):
    """What was found."""

    version: str
    """As the server says it; empty: the login may not ask."""
    has_streams: bool
    """Streams can be used. Without them there is only Pub/Sub: live, without history, not resumable."""
    exclusive_ranges: bool = False
    """Redis 6.2: `(` in ranges, MINID, XAUTOCLAIM; older servers are served by substitutes."""
    sharded_pubsub: bool = False
    """Redis 7.0, used on Cluster."""


async def read_features(server: Topology | str, *, prefix: str, seconds: float = 5.0) -> ServerFeatures:
    """Ask a server. A fork that calls itself by any version is believed by what it answers to XLEN.

    Raises:
        LogUnavailable: no answer in time, or it cannot answer now. ConfigError: a URL that cannot be used.
    """
    topology = open_topology(server) if isinstance(server, str) else server
    deadline, key = within(seconds), f"{prefix}features"
    endpoint = await topology.endpoint_for(topology.slot(key))
    connection = await Connection.open(endpoint, deadline=deadline, name="tailrace-checks")
    try:
        has_streams = True
        try:
            await connection.call("XLEN", key, deadline=deadline)
        except ReplyError as exc:
            if exc.code in ("LOADING", "BUSY", "MASTERDOWN"):
                raise LogUnavailable(f"{endpoint.label} cannot answer now: {exc.code}") from exc
            # A login that may not ask this, or another node's slot, proves nothing against it.
            has_streams = "unknown command" not in exc.message.lower()
        try:
            facts = lines(await connection.call("INFO", "server", deadline=deadline))
            text = facts.get("redis_version", "")
        except ReplyError:
            text = ""
    finally:
        connection.abort()
    version = tuple(int(part) for part in text.split(".") if part.isdigit()) or connection.version
    return ServerFeatures(text, has_streams, version >= (6, 2), version >= (7, 0))
