"""What a login may do, found out without doing it.

After MULTI a server judges every command (its name, the user's right to it, to its keys and channels) before it puts
it aside; the connection is then given up, and nothing was done. That holds from 5.0 on and needs only the right to
MULTI, where ACL DRYRUN needs 7.0 and an administrator.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tailrace.errors import LogUnavailable
from tailrace.eventlog.acl import needed_commands
from tailrace.eventlog.redis.connection import Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Mode

__all__ = ["Rights", "find_rights"]


class Rights(msgspec.Struct, frozen=True):
    """What is missing."""

    checked: bool
    """False: the login may not use MULTI; nothing else is known then."""
    refused: tuple[str, ...] = ()
    """Needed commands the user has no right to."""
    unknown: tuple[str, ...] = ()
    """Needed commands the server does not have."""
    keys: bool = True
    channels: bool = True


# Words after the command, with {key} and {channel} filled in; what is not here takes only a key.
_WORDS: Final[dict[str, str]] = {
    "PING": "",
    "SELECT": "0",
    "CLIENT|SETNAME": "x",
    "CLIENT|ID": "",
    "TIME": "",
    "WAIT": "0 0",
    "XADD": "{key} * a 1",
    "XRANGE": "{key} - +",
    "XREVRANGE": "{key} + -",
    "XREAD": "STREAMS {key} 0",
    "XTRIM": "{key} MAXLEN 0",
    "XDEL": "{key} 0-1",
    "XINFO": "STREAM {key}",
    "HGET": "{key} a",
    "HMGET": "{key} a",
    "HSET": "{key} a 1",
    "HDEL": "{key} a",
    "HEXISTS": "{key} a",
    "HINCRBY": "{key} a 1",
    "HSCAN": "{key} 0",
    "SCAN": "0",
    "PEXPIRE": "{key} 1000",
    "PEXPIREAT": "{key} 1000",
    "SET": "{key} 1",
    "INCRBY": "{key} 1",
    "EXPIRE": "{key} 1",
    "EXPIREAT": "{key} 1",
    "ZADD": "{key} 1 a",
    "ZREM": "{key} a",
    "ZCOUNT": "{key} 0 1",
    "ZSCORE": "{key} a",
    "ZRANGE": "{key} 0 1",
    "ZRANGEBYSCORE": "{key} 0 1",
    "ZREMRANGEBYSCORE": "{key} 0 1",
    "ZREMRANGEBYRANK": "{key} 0 1",
    "SADD": "{key} a",
    "SREM": "{key} a",
    "SISMEMBER": "{key} a",
    "EVAL": "return~1 1 {key}",
    "EVALSHA": "0000000000000000000000000000000000000000 1 {key}",
    "SCRIPT|LOAD": "return~1",
    "PUBLISH": "{channel} x",
    "SUBSCRIBE": "{channel}",
    "UNSUBSCRIBE": "{channel}",
    "XGROUP": "CREATE {key} g 0",
    "XREADGROUP": "GROUP g c STREAMS {key} >",
    "XACK": "{key} g 0-1",
    "XPENDING": "{key} g",
    "XCLAIM": "{key} g c 0 0-1",
    "XAUTOCLAIM": "{key} g c 0 0",
    "ROLE": "",
    "ASKING": "",
    "CLUSTER|SLOTS": "",
    "CLUSTER|SHARDS": "",
    "SPUBLISH": "{channel} x",
    "SSUBSCRIBE": "{channel}",
    "SUNSUBSCRIBE": "{channel}",
}


_ONLY_IN: Final[dict[str, Mode]] = {
    "ASKING": Mode.CLUSTER,
    "CLUSTER|SLOTS": Mode.CLUSTER,
    "CLUSTER|SHARDS": Mode.CLUSTER,
    "SPUBLISH": Mode.CLUSTER,
    "SSUBSCRIBE": Mode.CLUSTER,
    "SUNSUBSCRIBE": Mode.CLUSTER,
    "ROLE": Mode.SENTINEL,
}


async def find_rights(
    connection: Connection, key: str, version: tuple[int, ...], mode: Mode, deadline: float
) -> Rights:
    """Ask what this connection's user may do with a key and a channel of that name. Ends the connection.

    Raises:
        LogUnavailable: no answer in time.
    """
    names = [
        name
        for name in needed_commands(version)
        if _ONLY_IN.get(name, mode) is mode and (name != "SELECT" or connection.endpoint.db)
    ]
    try:
        try:
            # Its answer first: without it, what follows would be done.
            await connection.call("MULTI", deadline=deadline)
        except ReplyError:
            return Rights(checked=False)
        replies = [connection.send(*_command(name, key)) for name in names]
        await asyncio.wait(replies, timeout=deadline - asyncio.get_running_loop().time())
    finally:
        connection.abort()
    if not all(reply.done() for reply in replies):
        raise LogUnavailable(f"{connection.endpoint.label} did not answer in time")
    return _judge(names, [reply.exception() for reply in replies])


def _command(name: str, key: str) -> list[str]:
    words = _WORDS.get(name, "{key}").split(" ") if _WORDS.get(name, "{key}") else []
    return [*name.split("|"), *(word.replace("~", " ").format(key=key, channel=key) for word in words)]


def _judge(names: list[str], errors: list[BaseException | None]) -> Rights:
    refused, unknown = [], []
    keys = channels = True
    for name, error in zip(names, errors, strict=True):
        if error is None:
            continue
        if not isinstance(error, ReplyError):
            raise error
        text = error.message.lower()
        if error.code != "NOPERM":
            # Anything else (MOVED, OOM, READONLY, …) comes after the rights were found good.
            unknown += [name] if "unknown command" in text or "unknown subcommand" in text else []
        elif "channel" in text:
            channels = False
        elif "key" in text:
            keys = False
        else:
            refused.append(name)
    return Rights(checked=True, refused=tuple(refused), unknown=tuple(unknown), keys=keys, channels=channels)
