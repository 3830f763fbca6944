"""The rights tailrace needs from Redis: the one list behind the documentation, the tests and the start-up check.

Commands inside scripts are checked against the user too, so the list names what the scripts call.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "CHECK_COMMANDS",
    "COMMANDS",
    "COMMANDS_SINCE",
    "SENTINEL_COMMANDS",
    "acl_rules",
    "needed_commands",
    "sentinel_rules",
]

COMMANDS: tuple[str, ...] = (
    # Connections. AUTH and HELLO are always allowed.
    *("PING", "SELECT", "CLIENT|SETNAME", "CLIENT|ID", "TIME", "WAIT"),
    # Streams and what is beside them
    *("XADD", "XRANGE", "XREVRANGE", "XREAD", "XLEN", "XTRIM", "XDEL", "XINFO"),
    *("HGET", "HMGET", "HGETALL", "HSET", "HDEL", "HLEN", "HEXISTS", "HINCRBY", "HSCAN"),
    *("EXISTS", "TYPE", "DEL", "UNLINK", "SCAN", "PTTL", "PEXPIRE", "PEXPIREAT", "PERSIST"),
    # Leases, counters and connection limits
    *("GET", "MGET", "SET", "INCR", "INCRBY", "DECR", "EXPIRE", "EXPIREAT"),
    *("ZADD", "ZREM", "ZCARD", "ZCOUNT", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE", "ZREMRANGEBYRANK"),
    *("SADD", "SREM", "SISMEMBER", "SMEMBERS", "SCARD"),
    # Scripts
    *("EVAL", "EVALSHA", "SCRIPT|LOAD"),
    # Push
    *("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"),
    # Groups
    *("XGROUP", "XREADGROUP", "XACK", "XPENDING", "XCLAIM"),
    # Sentinel and Cluster: which server has the keys
    *("ROLE", "ASKING", "CLUSTER|SLOTS"),
)
"""Without one of these something does not work."""

COMMANDS_SINCE: dict[tuple[int, int], tuple[str, ...]] = {
    (6, 2): ("XAUTOCLAIM",),
    (7, 0): ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", "CLUSTER|SHARDS"),
}
"""Needed from a version on; older servers do not know these names, and refuse a user that has them."""

CHECK_COMMANDS: tuple[str, ...] = ("INFO", "CONFIG|GET", "ACL|WHOAMI", "MULTI", "MEMORY|USAGE")
"""Only for `tailrace doctor`, the start-up checks and `tailrace info`: without them these know less, and say so."""

SENTINEL_COMMANDS: tuple[str, ...] = ("PING", "SENTINEL|GET-MASTER-ADDR-BY-NAME")
"""All that is asked of sentinels, which have users of their own since Redis 6.2."""


def needed_commands(version: tuple[int, ...]) -> Iterator[str]:
    """The commands that are needed on a server of this version, subcommands as `COMMAND|SUB`."""
    yield from COMMANDS
    for since, names in COMMANDS_SINCE.items():
        if version >= since:
            yield from names


def acl_rules(key_prefix: str, version: tuple[int, ...] = (7, 0), *, checks: bool = True) -> list[str]:
    """Rules for `ACL SETUSER <user> on ><password> …`: no more than tailrace needs.

    Args:
        key_prefix: the setting of that name; keys and channels outside of it cannot be touched.
        version: the server's.
        checks: also allow the reading of server facts by start-up checks.
    """
    names = list(needed_commands(version))
    if checks:
        names += CHECK_COMMANDS
    channels = ["resetchannels", f"&{key_prefix}*"] if version >= (6, 2) else []
    return ["resetkeys", f"~{key_prefix}*", *channels, "-@all", *(f"+{name.lower()}" for name in names)]


def sentinel_rules() -> list[str]:
    """Rules for a user of the sentinels, as those of `acl_rules`."""
    return ["resetkeys", "resetchannels", "-@all", *(f"+{name.lower()}" for name in SENTINEL_COMMANDS)]
