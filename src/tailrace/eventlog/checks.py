"""Start-up checks: facts are gathered from each server, and the table's rows are held against them.

check_facts.py talks, `judge` decides, check_table.py has the rows with their texts and exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

import msgspec

from tailrace.errors import ConfigError, LogUnavailable
from tailrace.eventlog.acl import acl_rules
from tailrace.eventlog.check_facts import Facts, connected, gather, last_words, lines, within
from tailrace.eventlog.check_table import CHECKS, Check, Finding, Level, exit_code
from tailrace.eventlog.redis.connection import LoginRefused, ReplyError
from tailrace.eventlog.redis.endpoint import Address, Endpoint, Mode
from tailrace.eventlog.redis.topology import Topology, open_topology

__all__ = ["CHECKS", "Check", "Facts", "Finding", "Level", "exit_code", "judge", "run_checks"]

MAX_CLOCK_SECONDS: Final = 2.0
NEARLY_FULL_PERCENT: Final = 80
MIN_PUSH_BUFFER_BYTES: Final = 32 << 20
CONNECTIONS_A_PROCESS: Final = 6


async def run_checks(
    url: str,
    *,
    key_prefix: str = "tailrace:",
    streams_enabled: bool = True,
    allow: Collection[str] = (),
    timeout_seconds: float = 5.0,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Look at the servers behind a URL; errors first. Never raises because of what it finds.

    Args:
        url: the Redis URL.
        key_prefix: under which the rights are looked at.
        streams_enabled: the setting; without Streams a server that has none is no error.
        allow: names of checks whose errors are only warned of.
        timeout_seconds: for each server.
        clock: our time, in seconds since 1970.
    """
    try:
        topology = open_topology(Address.parse(url))
    except ConfigError as exc:
        return [_found("url", "the Redis URL", error=str(exc))]
    findings = []
    try:
        async with asyncio.timeout(timeout_seconds):
            nodes = await topology.nodes()
    except (LogUnavailable, ConfigError, TimeoutError) as exc:
        findings = await _lost(topology, exc)
        nodes = ()
    looks = [_look(node, topology, key_prefix, streams_enabled, timeout_seconds, clock) for node in nodes]
    for found in await asyncio.gather(*looks):
        findings += found
    return sorted((_allowed(finding, allow) for finding in findings), key=lambda one: list(Level).index(one.level))


def _allowed(finding: Finding, allow: Collection[str]) -> Finding:
    if finding.level is Level.ERROR and finding.check in allow:
        return msgspec.structs.replace(finding, level=Level.WARNING, exit_code=0)
    return finding


def _found(name: str, server: str, **facts: object) -> Finding:
    row = CHECKS[name]
    text, advice = row.text.format(**facts), row.advice.format(**facts) if facts else row.advice
    return Finding(row.name, row.level, row.exit_code, server, text, advice)


async def _lost(topology: Topology, error: Exception) -> list[Finding]:
    """No server is known: say which seed is why."""
    address = topology.address
    text = str(error) or "no answer in time"
    server = ", ".join(seed.label for seed in address.seeds)
    if address.mode is Mode.CLUSTER:
        for seed in address.seeds:
            with contextlib.suppress(LogUnavailable, ConfigError, ReplyError, KeyError):
                async with connected(seed, 1.0) as connection:
                    info = lines(await connection.call("INFO", deadline=within(1.0)))
                    return [
                        _found("cluster.down" if info["cluster_enabled"] == "1" else "mode.not-cluster", seed.label)
                    ]
    return [_found("sentinel.master" if address.mode is Mode.SENTINEL else "reachable", server, error=text)]


async def _look(
    endpoint: Endpoint,
    topology: Topology,
    prefix: str,
    streams_enabled: bool,
    seconds: float,
    clock: Callable[[], float],
) -> list[Finding]:
    try:
        facts = await gather(endpoint, topology, prefix, seconds, clock)
    except LoginRefused as exc:
        return [_refused(endpoint, exc)]
    except LogUnavailable as exc:
        if "loading" in str(exc):
            return [_found("loading", endpoint.label)]
        words = await last_words(endpoint)
        if "max number of clients" in words:
            return [_found("clients.full", endpoint.label)]
        return [_found("reachable", endpoint.label, error=f"{exc}; it says: {words}" if words else str(exc))]
    except ConfigError as exc:
        return [_found("url", endpoint.label, error=str(exc))]
    return list(judge(facts, prefix=prefix, streams_enabled=streams_enabled))


def _refused(endpoint: Endpoint, error: LoginRefused) -> Finding:
    cause = error.__context__
    message = cause.message if isinstance(cause, ReplyError) else ""
    if message.startswith("BUSY"):
        return _found("busy", endpoint.label)
    if message.startswith("MASTERDOWN"):
        return _found("replica", endpoint.label, master="a master it has lost")
    if "max number of clients" in message:
        return _found("clients.full", endpoint.label)
    if message.startswith("NOAUTH") and endpoint.password is None:
        return _found("login.missing", endpoint.label)
    if "DB index" in message or "SELECT is not allowed" in message:
        return _found("database", endpoint.label, db=endpoint.db, error=message)
    # The message of an old server could repeat the password; its first word cannot.
    return _found("login", endpoint.label, error=message.partition(" ")[0])


def judge(facts: Facts, *, prefix: str, streams_enabled: bool = True) -> Iterator[Finding]:
    """Hold the table against the facts of one server."""
    label = facts.endpoint.label
    if facts.is_sentinel:
        yield _found("mode.sentinel", label)  # everything else follows from that
        return
    for name, values in (
        *_what(facts, streams_enabled),
        *_rights(facts, prefix),
        *_writing(facts),
        *(_keeping(facts) if facts.info is not None else ()),
        *_room(facts),
        *_around(facts),
    ):
        yield _found(name, label, **values)


_Row = tuple[str, dict[str, object]]


def _what(facts: Facts, streams_enabled: bool) -> Iterator[_Row]:
    info = facts.info or {}
    version = f"{facts.product} {info.get('valkey_version') or '.'.join(map(str, facts.version))}"
    if info.get("cluster_enabled") == "1" and facts.mode is not Mode.CLUSTER:
        yield "mode.cluster", {}
    if info.get("role") == "slave":
        yield "replica", {"master": f"{info.get('master_host')}:{info.get('master_port')}"}
    if not streams_enabled:
        yield "streams.off", {}
    elif not facts.has_streams:
        yield "streams.missing", {"version": version}
        return
    if facts.version < (6, 2):
        yield "version.old", {"version": version}
    elif facts.version < (7, 0) and facts.mode is Mode.CLUSTER:
        yield "version.cluster", {"version": version}
    features = ["Streams"]
    features += ["exclusive ranges, MINID, XAUTOCLAIM"] if facts.version >= (6, 2) else []
    features += ["sharded Pub/Sub"] if facts.version >= (7, 0) else []
    yield "version", {"version": version, "features": ", ".join(features)}


def _rights(facts: Facts, prefix: str) -> Iterator[_Row]:
    rights, user = facts.rights, facts.user
    if not rights.checked:
        yield "acl.unchecked", {"user": user}
    if rights.refused:
        names = ", ".join(name.replace("|", " ") for name in rights.refused)
        rules = " ".join(f"+{name.lower()}" for name in rights.refused)
        if len(rights.refused) > 20:
            rules = " ".join(acl_rules(prefix, facts.version))
        yield "acl.commands", {"user": user, "commands": names, "rules": rules}
    if not rights.keys:
        yield "acl.keys", {"user": user, "prefix": prefix}
    if not rights.channels:
        yield "acl.channels", {"user": user, "prefix": prefix}
    if rights.unknown and facts.has_streams:
        yield "commands", {"commands": ", ".join(name.replace("|", " ") for name in rights.unknown)}
    if facts.unchecked:
        rules = " ".join(f"+{name.lower()}" for name in facts.unchecked)
        what = " and ".join(name.replace("|", " ") for name in facts.unchecked)
        yield "facts.unread", {"user": user, "what": what, "rules": rules}


def _writing(facts: Facts) -> Iterator[_Row]:
    error = facts.write_error
    if error is None:
        return
    code = error.partition(" ")[0]
    if code == "MISCONF":
        yield "writes.disk", {"error": _disk(facts.info or {})}
    elif code == "NOREPLICAS":
        yield "writes.replicas", {}
    elif code == "OOM":
        yield "writes.memory", {}
    elif code == "CLUSTERDOWN":
        yield "cluster.down", {}
    elif code not in ("READONLY", "NOPERM", "MOVED", "ASK") and "unknown command" not in error:
        # The rights and the mode have rows of their own.
        yield "writes", {"error": error}


def _disk(info: dict[str, str]) -> str:
    if info.get("aof_last_write_status", "ok") != "ok":
        return "append-only file"
    return "snapshot" if info.get("rdb_last_bgsave_status", "ok") != "ok" else "see its log"


def _keeping(facts: Facts) -> Iterator[_Row]:
    info, config = facts.info or {}, facts.config or {}
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield ("eviction" if info.get("maxmemory", "0") != "0" else "eviction.armed"), {"policy": policy}
    if info.get("aof_enabled") == "1":
        fsync = config.get("appendfsync", "unknown")
        yield ("persistence.fsync" if fsync == "no" else "persistence"), {"fsync": fsync}
    elif config.get("save") or facts.config is None:
        yield "persistence.snapshots", {"save": config.get("save", "unknown")}
    else:
        yield "persistence.none", {}
    replicas = int(info.get("connected_slaves", "0"))
    if replicas and config.get("min-replicas-to-write", "0") == "0" and facts.config is not None:
        yield "replication", {}


def _room(facts: Facts) -> Iterator[_Row]:
    info, config = facts.info or {}, facts.config or {}
    limit, used = int(info.get("maxmemory", "0")), int(info.get("used_memory", "0"))
    if limit and used * 100 >= limit * NEARLY_FULL_PERCENT:
        yield "memory.nearly-full", {"percent": used * 100 // limit}
    elif not limit and facts.info is not None:
        yield "memory.unlimited", {}
    words = config.get("client-output-buffer-limit", "").split()
    if "pubsub" in words:
        at = words.index("pubsub")
        if 0 < int(words[at + 1]) < MIN_PUSH_BUFFER_BYTES:
            yield "push.buffer", {"limit": " ".join(words[at + 1 : at + 4])}
    maximum, connected = int(config.get("maxclients", "0")), int(info.get("connected_clients", "0"))
    if maximum and (maximum - connected < 2 * CONNECTIONS_A_PROCESS or connected * 100 > maximum * NEARLY_FULL_PERCENT):
        yield "clients", {"connected": connected, "maximum": maximum, "needed": CONNECTIONS_A_PROCESS}


def _around(facts: Facts) -> Iterator[_Row]:
    endpoint, seconds = facts.endpoint, facts.clock_seconds
    if abs(seconds) > MAX_CLOCK_SECONDS:
        yield "clock", {"seconds": f"{abs(seconds):.1f}", "direction": "ahead of" if seconds > 0 else "behind"}
    if endpoint.tls is not None and not endpoint.tls.verify:
        yield "tls.unverified", {}
    if _is_local(endpoint):
        return
    if endpoint.tls is None:
        yield "tls.off", {}
    if endpoint.password is None:
        yield "login.open", {}


def _is_local(endpoint: Endpoint) -> bool:
    if endpoint.path is not None or endpoint.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(endpoint.host).is_loopback
    except ValueError:
        return False
