"""Servers that are more than one plain process: TLS with a minimal ACL user, Sentinel, Cluster.

The fixtures are per session. Tests may fail over, kill nodes and move slots: `redis_sentinel` and `redis_cluster` are
brought back to health before the next test gets them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tailrace.eventlog.acl import acl_rules
from tests.support.need import need_redis70
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually_sync

__all__ = ["Certificates", "RedisCluster", "RedisSentinel", "TlsServer", "make_certificates"]

LOOPBACK = "127.0.0.1"
SLOTS = 16_384


@dataclass(frozen=True)
class Certificates:
    """Files of a private certificate authority and one server certificate for 127.0.0.1 and localhost."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and a certificate, good for a day."""
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(issuer_name=ca_name, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(ca_key, hashes.SHA256())

    def write(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    pem = serialization.Encoding.PEM
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    return Certificates(
        ca=write("ca.pem", build(ca_name, ca_key, authority=True).public_bytes(pem)),
        certificate=write("server.pem", build(subject, server_key, authority=False).public_bytes(pem)),
        key=write("server.key", server_key.private_bytes(pem, pkcs8, plain)),
    )


class TlsServer(RedisServer):
    """TLS only on its port, a password for `default`, and the user `tailrace` with the documented minimal rights on
    keys and channels `t*` (what `key_prefix` makes). `cli` goes by the unix socket as `default`."""

    USER, PASSWORD, ADMIN_PASSWORD = "tailrace", "p@ss/word:%", "admin-password"

    def __init__(self, binary: str) -> None:
        super().__init__(binary)
        certificates = make_certificates(self.folder)
        self.ca = certificates.ca
        self.tls_port = find_port()
        rules = " ".join(acl_rules("t"))
        self.configure(
            {
                "tls-port": str(self.tls_port),
                "tls-cert-file": str(certificates.certificate),
                "tls-key-file": str(certificates.key),
                "tls-ca-cert-file": str(certificates.ca),
                "tls-auth-clients": "no",
                "requirepass": self.ADMIN_PASSWORD,
                "user": f"{self.USER} on >{self.PASSWORD} {rules}",
            }
        )
        self.credentials = (self.ADMIN_PASSWORD,)
        self.url = (
            f"rediss://{self.USER}:p%40ss%2Fword%3A%25@{LOOPBACK}:{self.tls_port}/0?ssl_ca_certs={certificates.ca}"
        )
        self.admin_url = f"rediss://:{self.ADMIN_PASSWORD}@{LOOPBACK}:{self.tls_port}/0?ssl_ca_certs={certificates.ca}"


class RedisSentinel:
    """A master, a replica and three sentinels that agree within a second.

    Args:
        binary: path of the server program.
        config: more settings of the two data servers.
        limited: the version whose minimal rights everybody gets there who does not log in; see `RedisServer`. The
            sentinels never give more.
    """

    SERVICE = "tailrace"
    QUICK = (
        *("INFO-PERIOD", 100, "PING-PERIOD", 100, "ASK-PERIOD", 100),
        *("ELECTION-TIMEOUT", 1_000, "MIN-LINK-RECONNECT-PERIOD", 100),
    )

    def __init__(
        self, binary: str, config: dict[str, str] | None = None, *, limited: tuple[int, int] | None = None
    ) -> None:
        first, second = find_port(), find_port()
        quick = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
        quick |= config or {}
        self.servers = [
            RedisServer(binary, quick, port=first, limited=limited),
            RedisServer(binary, quick | {"replicaof": f"{LOOPBACK} {first}"}, port=second, limited=limited),
        ]
        watch = {
            "sentinel": [
                f"monitor {self.SERVICE} {LOOPBACK} {first} 2",
                f"down-after-milliseconds {self.SERVICE} 500",
                f"failover-timeout {self.SERVICE} 2000",
            ]
        }
        name, password = RedisServer.ADMIN
        if limited is not None:
            watch["sentinel"] += [f"auth-user {self.SERVICE} {name}", f"auth-pass {self.SERVICE} {password}"]
        # What they ask of each other is the administrator's, too.
        watch["sentinel"] += [f"sentinel-user {name}", f"sentinel-pass {password}"]
        self.sentinels = [
            RedisServer(binary, watch, port=find_port(), mode="sentinel", limited=limited or (7, 0)) for _ in range(3)
        ]
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{self.SERVICE}/0"

    def start_sync(self) -> None:
        for server in (*self.servers, *self.sentinels):
            server.start_sync()
        for sentinel in self.sentinels:
            sentinel.cli_sync("SENTINEL", "DEBUG", *self.QUICK, "PUBLISH-PERIOD", 100)
        self.heal_sync()
        # Four of these later a sentinel turns an unknown master back into a replica; the one that leads a fail-over
        # looks for the new master once a second. So they find each other quickly, and then slow down.
        for sentinel in self.sentinels:
            sentinel.cli_sync("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 700)

    def remove_sync(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.remove_sync()

    def master_ports(self) -> list[int]:
        """The master's port, as each sentinel says it."""
        return [
            int(sentinel.cli_sync("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])
            for sentinel in self.sentinels
        ]

    @property
    def master(self) -> RedisServer:
        """The server that the sentinels call the master."""
        port = self.master_ports()[0]
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        master = self.master
        return next(server for server in self.servers if server is not master)

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError, StopIteration, TypeError, ValueError):
            master, replica = self.master, self.replica
            if master.cli_sync("ROLE")[0] != "master" or len(set(self.master_ports())) != 1:
                return False
            if master.cli_sync("WAIT", 1, 50) != 1:
                return False
            role = replica.cli_sync("ROLE")
            if role[0] != "slave" or role[2] != master.port or role[3] != "connected":
                return False
            for sentinel in self.sentinels:
                state = _pairs(sentinel.cli_sync("SENTINEL", "MASTER", self.SERVICE))
                known = (state["num-slaves"], state["num-other-sentinels"], state["flags"])
                if known != ("1", "2", "master"):
                    return False
            return True
        return False

    def heal_sync(self) -> None:
        """Start what was killed, and wait until everybody agrees and the replica follows."""
        for server in (*self.servers, *self.sentinels):
            if not server.running:
                server.start_sync()
        eventually_sync(self._healthy, timeout=20)

    def _promoted(self, old: int) -> bool:
        with contextlib.suppress(OSError, StopIteration, TypeError):
            return old not in self.master_ports() and self.master.cli_sync("ROLE")[0] == "master"
        return False

    def _failed_over(self, old: int) -> bool:
        """Whether they made another the master; else order it. One that cannot yet refuses, and one that took too long
        gives it up."""
        if self._promoted(old):
            return True
        if set(self.master_ports()) == {old}:
            self.sentinels[0].cli_sync("SENTINEL", "FAILOVER", self.SERVICE)
        return False

    async def failover(self) -> None:
        """Have the sentinels make the replica the master, and wait until they did."""
        old = self.master.port
        await asyncio.to_thread(eventually_sync, lambda: self._failed_over(old), 90, every=0.05)

    async def wait_promoted(self, old: RedisServer) -> None:
        """Wait until all sentinels name another master than this one."""
        await asyncio.to_thread(eventually_sync, lambda: self._promoted(old.port), 45)

    async def kill_master(self, *, wait: bool = True) -> RedisServer:
        """Kill the master with -9; wait until the replica is the new one. Returns the killed server."""
        master = await asyncio.to_thread(lambda: self.master)
        await master.kill()
        if wait:
            await self.wait_promoted(master)
        return master


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class RedisCluster:
    """Three masters with a third of the slots each.

    Args:
        binary: path of the server program.
        config: more settings of every node.
        replicas: whether each master gets a replica.
        limited: the version whose minimal rights everybody gets who does not log in; see `RedisServer`.
    """

    def __init__(
        self,
        binary: str,
        config: dict[str, str] | None = None,
        *,
        replicas: bool = False,
        limited: tuple[int, int] | None = None,
    ) -> None:
        self.nodes = []
        for _ in range(6 if replicas else 3):
            settings = {
                "cluster-enabled": "yes",
                "cluster-node-timeout": "2000",
                "cluster-port": str(find_port()),
                "cluster-config-file": "nodes.conf",
                "cluster-allow-replica-migration": "no",
                "repl-diskless-sync-delay": "0",
                **(config or {}),
            }
            self.nodes.append(RedisServer(binary, settings, port=find_port(), limited=limited))
        self.url = "redis+cluster://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)
        self._ids: dict[str, RedisServer] = {}

    def start_sync(self) -> None:
        for node in self.nodes:
            node.start_sync()
        self._ids = {str(node.cli_sync("CLUSTER", "MYID")): node for node in self.nodes}
        third = SLOTS // 3
        for index, node in enumerate(self.nodes[:3]):
            last = SLOTS - 1 if index == 2 else third * (index + 1) - 1
            node.cli_sync("CLUSTER", "ADDSLOTSRANGE", third * index, last)
            node.cli_sync("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        bus = self.nodes[0].config["cluster-port"]
        assert isinstance(bus, str)
        for node in self.nodes[1:]:
            node.cli_sync("CLUSTER", "MEET", LOOPBACK, self.nodes[0].port, bus)
        for master, replica in zip(self.nodes, self.nodes[3:], strict=False):
            name = self._name_of(master)
            eventually_sync(lambda r=replica, n=name: r.cli_sync("CLUSTER", "REPLICATE", n) == "OK", 20)  # type: ignore[misc]
        self.heal_sync()

    def _name_of(self, node: RedisServer) -> str:
        return next(name for name, each in self._ids.items() if each is node)

    def remove_sync(self) -> None:
        for node in self.nodes:
            node.remove_sync()

    def heal_sync(self) -> None:
        """Start what was killed, and wait until all nodes agree on all slots and every replica follows."""
        for node in self.nodes:
            if not node.running:
                node.start_sync()
        eventually_sync(self._healthy, timeout=30)

    def _healthy(self) -> bool:
        views = []
        for node in self.nodes:
            info = str(node.cli_sync("CLUSTER", "INFO"))
            if "cluster_state:ok" not in info or f"cluster_known_nodes:{len(self.nodes)}" not in info:
                return False
            role = node.cli_sync("ROLE")
            if role[0] == "slave" and role[3] != "connected":
                return False
            if role[0] == "master" and len(role[2]) != len(self.nodes) // 3 - 1:
                return False
            views.append(sorted((one[0], one[1], one[2][1]) for one in node.cli_sync("CLUSTER", "SLOTS")))
        agreed = all(view == views[0] for view in views)
        return agreed and sum(last - first + 1 for first, last, _ in views[0]) == SLOTS

    def replica_of_sync(self, master: RedisServer) -> RedisServer:
        """The node that follows a master."""
        for node in self.nodes:
            role = node.cli_sync("ROLE")
            if role[0] == "slave" and role[2] == master.port:
                return node
        raise LookupError(f"nobody follows {master.port}")

    async def failover(self, slot: int) -> None:
        """Have the replica of a slot's node take over in order, and wait until it did."""
        master = await self.node_of(slot)
        replica = await asyncio.to_thread(self.replica_of_sync, master)
        await replica.cli("CLUSTER", "FAILOVER")
        await asyncio.to_thread(eventually_sync, lambda: replica.cli_sync("ROLE")[0] == "master", 45)

    async def kill_node(self, slot: int) -> RedisServer:
        """Kill a slot's node, wait until its replica took over, and return the killed one."""
        master = await self.node_of(slot)
        replica = await asyncio.to_thread(self.replica_of_sync, master)
        await master.kill()
        await asyncio.to_thread(eventually_sync, lambda: replica.cli_sync("ROLE")[0] == "master", 45)
        return master

    def slot_sync(self, key: str) -> int:
        """The slot of a key."""
        return int(self.nodes[0].cli_sync("CLUSTER", "KEYSLOT", key))

    def node_of_sync(self, slot: int) -> RedisServer:
        """The node that has a slot."""
        alive = next(node for node in self.nodes if node.running)
        for first, last, master, *_ in alive.cli_sync("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self._ids[master[2]]
        raise LookupError(f"slot {slot} has no node")

    def other_sync(self, slot: int) -> RedisServer:
        """A node that has not this slot."""
        owner = self.node_of_sync(slot)
        return next(node for node in self._masters() if node is not owner)

    def _masters(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.cli_sync("ROLE")[0] == "master"]

    def begin_move_sync(self, slot: int, to: RedisServer) -> RedisServer:
        """Mark a slot as on its way, without moving a key: its missing keys are answered with ASK. Returns its node."""
        source = self.node_of_sync(slot)
        ids = {id(node): name for name, node in self._ids.items()}
        _ok(to.cli_sync("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[id(source)]))
        _ok(source.cli_sync("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[id(to)]))
        return source

    def move_slot_sync(self, slot: int, to: RedisServer) -> None:
        """Move a slot with its keys, as redis-cli --cluster reshard does."""
        source = self.begin_move_sync(slot, to)
        if source is to:
            return
        while keys := source.cli_sync("CLUSTER", "GETKEYSINSLOT", slot, 100):
            login = ("AUTH2", *to.credentials) if to.credentials else ()
            _ok(source.cli_sync("MIGRATE", LOOPBACK, to.port, "", 0, 5_000, *login, "KEYS", *keys))
        name = self._name_of(to)
        for node in dict.fromkeys((to, source, *self._masters())):
            _ok(node.cli_sync("CLUSTER", "SETSLOT", slot, "NODE", name))
        eventually_sync(self._healthy, timeout=20)

    async def slot(self, key: str) -> int:
        """The slot of a key."""
        return await asyncio.to_thread(self.slot_sync, key)

    async def node_of(self, slot: int) -> RedisServer:
        """The node that has a slot."""
        return await asyncio.to_thread(self.node_of_sync, slot)

    async def other(self, slot: int) -> RedisServer:
        """A node that has not this slot."""
        return await asyncio.to_thread(self.other_sync, slot)

    async def begin_move(self, slot: int, to: RedisServer) -> RedisServer:
        """Mark a slot as on its way; finish with `move_slot`."""
        return await asyncio.to_thread(self.begin_move_sync, slot, to)

    async def move_slot(self, slot: int, to: RedisServer) -> None:
        """Move a slot with its keys and wait until every node knows."""
        await asyncio.to_thread(self.move_slot_sync, slot, to)


def _ok(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise reply


@pytest.fixture(scope="session")
def redis_tls_acl() -> Iterator[TlsServer]:
    """A shared server with TLS, passwords and a minimal ACL user; `url` logs in as that user."""
    server = TlsServer(need_redis70())
    try:
        server.start_sync()
        yield server
    finally:
        server.remove_sync()


def _expect_nothing_denied(servers: Sequence[RedisServer]) -> None:
    denied = [each for server in servers for each in server.denied_sync()]
    assert denied == [], "the minimal rights are not enough"


@pytest.fixture(scope="session")
def _sentinel() -> Iterator[RedisSentinel]:
    made = RedisSentinel(need_redis70(), limited=(7, 0))
    try:
        made.start_sync()
        yield made
        _expect_nothing_denied((*made.servers, *made.sentinels))
    finally:
        made.remove_sync()


@pytest.fixture(scope="session")
def _cluster() -> Iterator[RedisCluster]:
    made = RedisCluster(need_redis70(), limited=(7, 0))
    try:
        made.start_sync()
        yield made
        _expect_nothing_denied(made.nodes)
    finally:
        made.remove_sync()


@pytest.fixture
def redis_sentinel(_sentinel: RedisSentinel) -> RedisSentinel:
    """The shared Sentinel set, healthy."""
    _sentinel.heal_sync()
    return _sentinel


@pytest.fixture
def redis_cluster(_cluster: RedisCluster) -> RedisCluster:
    """The shared Cluster, healthy."""
    _cluster.heal_sync()
    return _cluster
