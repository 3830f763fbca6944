"""The table of start-up checks: what is looked at, how bad it is, what it means, and what to do about it.

Exit codes of `tailrace doctor`: 0 all good, or warnings only · 69 Redis cannot be used now · 75 wait and try again ·
77 the login or its rights do not suffice · 78 the configuration (ours or the server's) has to change.
`tailrace serve` refuses to start on an error, except those that only time cures (69, 75): it waits for these.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["CHECKS", "Check", "Finding", "Level", "exit_code"]

UNAVAILABLE: Final = 69
TEMPORARY: Final = 75
RIGHTS: Final = 77
CONFIGURATION: Final = 78


class Level(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Something promised does not work."""
    WARNING = "warning"
    """It works today; it is slower, or can lose events, or will stop to work."""
    INFO = "info"


class Check(msgspec.Struct, frozen=True):
    """A row of the table."""

    name: str
    level: Level
    exit_code: int
    text: str
    """What was found; `{…}` are facts of the finding."""
    advice: str = ""
    """What to do, in a sentence or two."""


class Finding(msgspec.Struct, frozen=True):
    """A check that had something to say about a server."""

    check: str
    level: Level
    exit_code: int
    server: str
    """Address, without secrets."""
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.server}: {self.text}" + (f" → {self.advice}" if self.advice else "")


def exit_code(findings: list[Finding], *, strict: bool = False) -> int:
    """The code of the worst finding; with `strict`, 1 when there are only warnings."""
    codes = [finding.exit_code for finding in findings if finding.level is Level.ERROR]
    if codes:
        # What has to be changed by hand comes before what may pass.
        return max(codes)
    return int(strict and any(finding.level is Level.WARNING for finding in findings))


def _error(name: str, code: int, text: str, advice: str) -> Check:
    return Check(name, Level.ERROR, code, text, advice)


def _warning(name: str, text: str, advice: str) -> Check:
    return Check(name, Level.WARNING, 0, text, advice)


def _info(name: str, text: str, advice: str = "") -> Check:
    return Check(name, Level.INFO, 0, text, advice)


_ROWS: Final = (
    # Getting there
    _error(
        "url", CONFIGURATION, "{error}", "Write it like redis://user:password@host:6379/0; see the configuration page."
    ),
    _error(
        "reachable",
        UNAVAILABLE,
        "{error}",
        "Is it running, is the address right, and does a firewall let us through? A server that wants TLS "
        "needs rediss:// in its URL.",
    ),
    _error("loading", TEMPORARY, "the server is loading its data", "Wait; nothing has to be done."),
    _error(
        "busy",
        TEMPORARY,
        "the server runs a script or function for too long, and answers nothing else",
        "Wait, or end it with SCRIPT KILL; tailrace's own scripts are short.",
    ),
    _error("clients.full", TEMPORARY, "the server has no connection left (maxclients)", "Raise maxclients."),
    _error("login", RIGHTS, "the login is refused ({error})", "Check user and password in the URL."),
    _error(
        "login.missing", RIGHTS, "the server wants a password and the URL has none", "Put user:password@ into the URL."
    ),
    _error(
        "database", CONFIGURATION, "database {db} cannot be used ({error})", "Use database 0, or raise `databases`."
    ),
    # What it is
    _error(
        "mode.cluster",
        CONFIGURATION,
        "the server is part of a Cluster, and the URL names a single server",
        "Write redis+cluster://host:port,host:port.",
    ),
    _error(
        "mode.not-cluster",
        CONFIGURATION,
        "the URL says Cluster, and the server is not part of one",
        "Write redis://host:port.",
    ),
    _error(
        "mode.sentinel",
        CONFIGURATION,
        "that is a Sentinel, which has no data",
        "Write redis+sentinel://host:port,host:port/service.",
    ),
    _error(
        "sentinel.master", UNAVAILABLE, "{error}", "Check the service name and the sentinels' view: SENTINEL MASTERS."
    ),
    _error(
        "cluster.down",
        UNAVAILABLE,
        "the Cluster does not serve all slots",
        "See CLUSTER INFO and CLUSTER NODES; a node is missing, or slots are not assigned.",
    ),
    _error(
        "replica",
        CONFIGURATION,
        "the server is a replica (of {master}): nothing can be written",
        "Name its master, or use redis+sentinel:// so that the master is found after a fail-over.",
    ),
    _error(
        "streams.missing",
        CONFIGURATION,
        "the server ({version}) has no Streams: only Pub/Sub without history would be left",
        "Use Redis 5.0 or newer (6.2 or newer is better), or Valkey.",
    ),
    _warning(
        "streams.off",
        "Streams are switched off by REDIS_STREAM_ENABLED: Pub/Sub only, without history, resume or proof",
        "Unset REDIS_STREAM_ENABLED once the move to Streams is wanted.",
    ),
    _warning(
        "version.old",
        "{version} works, without exclusive ranges, XAUTOCLAIM and sharded Pub/Sub: substitutes cost a little more",
        "Redis 6.2 or newer is better; 5.0 and 6.0 get no security fixes.",
    ),
    _warning(
        "version.cluster",
        "{version} has no sharded Pub/Sub: in a Cluster every push goes to every node",
        "Use Redis 7.0 or newer for a Cluster.",
    ),
    _info("version", "{version}: {features}"),
    # Keeping data
    _error(
        "eviction",
        CONFIGURATION,
        "maxmemory-policy is {policy}: under memory pressure whole streams are deleted",
        "CONFIG SET maxmemory-policy noeviction, and in its configuration file.",
    ),
    _warning(
        "eviction.armed",
        "maxmemory-policy is {policy}: harmless only as long as maxmemory is 0",
        "CONFIG SET maxmemory-policy noeviction, and in its configuration file.",
    ),
    _warning(
        "persistence.none",
        "nothing is written to disk: a restart of the server loses every stream",
        "Set appendonly yes (and appendfsync everysec).",
    ),
    _warning(
        "persistence.snapshots",
        "only snapshots are written (save {save}): a crash loses what came since the last one",
        "Set appendonly yes (and appendfsync everysec).",
    ),
    _warning(
        "persistence.fsync",
        "appendfsync is no: a power cut loses up to half a minute",
        "Set appendfsync everysec, or always.",
    ),
    _info("persistence", "append-only file, appendfsync {fsync}"),
    _warning(
        "replication",
        "writes are acknowledged before a replica has them: a fail-over can lose the last ones",
        "Set min-replicas-to-write 1 and min-replicas-max-lag 2 on master and replicas.",
    ),
    # Writing
    _error(
        "writes.disk",
        UNAVAILABLE,
        "writes are refused: the server cannot write to its disk ({error})",
        "Look at the server's log and its disk space; writes go on by themselves afterwards.",
    ),
    _error(
        "writes.replicas",
        UNAVAILABLE,
        "writes are refused: too few replicas are connected (min-replicas-to-write)",
        "Bring the replicas back.",
    ),
    _error("writes.memory", UNAVAILABLE, "writes are refused: maxmemory is reached", "Raise maxmemory, or keep less."),
    _error("writes", UNAVAILABLE, "writes are refused ({error})", "Look at the server's log."),
    # Rights
    _error(
        "acl.commands",
        RIGHTS,
        "user {user} may not use {commands}",
        "ACL SETUSER {user} {rules}",
    ),
    _error("acl.keys", RIGHTS, "user {user} may not use the keys {prefix}*", "ACL SETUSER {user} ~{prefix}*"),
    _error("acl.channels", RIGHTS, "user {user} may not use the channels {prefix}*", "ACL SETUSER {user} &{prefix}*"),
    _error(
        "commands",
        CONFIGURATION,
        "the server does not know {commands} (renamed or removed)",
        "Remove its rename-command lines, or use a service that allows them.",
    ),
    _info(
        "acl.unchecked",
        "the rights of user {user} could not be looked at without using them",
        "To have them checked: ACL SETUSER {user} +multi",
    ),
    _info(
        "facts.unread",
        "the login may not read {what}, so that not everything was checked",
        "To have it checked: ACL SETUSER {user} {rules}",
    ),
    # Room
    _warning(
        "memory.nearly-full",
        "{percent} % of maxmemory is used; at 100 % appends are refused",
        "Raise maxmemory, or keep less: shorter retention, fewer records a stream.",
    ),
    _info("memory.unlimited", "maxmemory is 0: the machine's memory is the limit", "Set maxmemory to what it may use."),
    _warning(
        "push.buffer",
        "client-output-buffer-limit pubsub is {limit}: a burst overflows it, and readers fall back to reading the log",
        "CONFIG SET client-output-buffer-limit 'pubsub 32mb 8mb 60' or more.",
    ),
    _warning(
        "clients",
        "{connected} of {maximum} connections are used; each tailrace process needs about {needed}",
        "Raise maxclients (and the server's limit of open files).",
    ),
    # Around it
    _warning(
        "clock",
        "the server's clock is {seconds} s {direction} ours: times in records and expiry of tokens differ",
        "Run NTP (chrony, systemd-timesyncd) on both machines.",
    ),
    _warning(
        "tls.off",
        "the connection to another machine is not encrypted",
        "Use rediss:// and tls-port, unless the network itself is private and encrypted.",
    ),
    _warning(
        "tls.unverified",
        "TLS without verification: anybody in between can pose as the server",
        "Remove ssl_cert_reqs=none, and name the authority with ssl_ca_certs.",
    ),
    _warning("login.open", "a server on another machine that wants no password", "Set requirepass, or ACL users."),
)

CHECKS: Final[dict[str, Check]] = {row.name: row for row in _ROWS}
"""The rows by name."""
