"""Each row of the table of start-up checks speaks up on a server that is so configured, and only there."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.support.need import absent, need_redis70
from tests.support.redis_servers import Config, RedisServer, StartRedis, find_port
from tests.support.redis_topologies import RedisCluster, RedisSentinel, TlsServer
from tests.support.wait import eventually

from tailrace.eventlog.acl import acl_rules, sentinel_rules
from tailrace.eventlog.check_facts import Facts, gather
from tailrace.eventlog.checks import CHECKS, Finding, Level, exit_code, judge, run_checks
from tailrace.eventlog.embedded import EmbeddedRedis
from tailrace.eventlog.redis.endpoint import Address, Endpoint
from tailrace.eventlog.redis.topology import open_topology


@pytest.fixture
def start_redis(start_redis: StartRedis) -> StartRedis:
    """Servers as an operator sets them up, who was told to by docs/redis-tuning.md."""

    async def start(config: Config | None = None, **more: Any) -> RedisServer:
        return await start_redis({"appendfsync": "everysec", **(config or {})}, **more)

    return start


def names(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.level is not Level.INFO}


def one(findings: list[Finding], name: str) -> Finding:
    found = [finding for finding in findings if finding.check == name]
    assert found, f"no {name} in {[str(finding) for finding in findings]}"
    return found[0]


def is_loading(server: RedisServer) -> bool:
    with contextlib.suppress(OSError):
        return "LOADING" in str(server.cli_sync("PING"))
    return False


async def facts_of(server: RedisServer) -> Facts:
    topology = open_topology(Address.parse(server.url))
    return await gather(await topology.endpoint_for(), topology, "t:", 5.0, time.time)


# What a setting leads to: the check that speaks, what its text contains, and the exit code of everything.
SETTINGS = {
    "eviction": ({"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}, "volatile-lru", 78),
    "eviction.armed": ({"maxmemory-policy": "allkeys-lru"}, "allkeys-lru", 0),
    "persistence.none": ({"appendonly": "no"}, "loses every stream", 0),
    "persistence.snapshots": ({"appendonly": "no", "save": "3600 1"}, "save 3600 1", 0),
    "persistence.fsync": ({"appendfsync": "no"}, "power cut", 0),
    "writes.replicas": ({"min-replicas-to-write": "1"}, "too few replicas", 69),
    "writes.memory": ({"maxmemory": "100kb"}, "maxmemory is reached", 69),
    "push.buffer": ({"client-output-buffer-limit": "pubsub 1mb 1mb 60"}, "1048576 1048576 60", 0),
    "clients": ({"maxclients": "10"}, "of 10 connections", 0),
}


@pytest.mark.parametrize("version", ["6.2", "7.0"])
@pytest.mark.parametrize("check", SETTINGS)
async def test_setting_is_found(start_redis: StartRedis, check: str, version: str) -> None:
    settings, text, code = SETTINGS[check]
    server = await start_redis(settings, version=version)

    findings = await run_checks(server.url)

    assert text in one(findings, check).text
    assert exit_code(findings) == code
    extra = {"memory.nearly-full"} if check == "writes.memory" else set()
    assert names(findings) == {check} | extra


@pytest.mark.parametrize("version", ["6.2", "7.0"])
async def test_server_with_good_settings_has_only_information(start_redis: StartRedis, version: str) -> None:
    server = await start_redis({"maxmemory": "100mb"}, version=version)

    findings = await run_checks(server.url)

    assert names(findings) == set()
    assert exit_code(findings, strict=True) == 0
    assert f"Redis {version}" in one(findings, "version").text
    assert "everysec" in one(findings, "persistence").text


async def test_embedded_server_needs_no_advice(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path)
    await redis.start()

    findings = await run_checks(redis.url)

    assert names(findings) == set()
    await redis.stop()


async def test_minimal_acl_user_over_tls_may_do_all_that_is_needed(redis_tls_acl: TlsServer) -> None:
    findings = await run_checks(redis_tls_acl.url, key_prefix="t")

    assert names(findings) == set()


async def test_cluster_is_fine_on_every_node(redis_cluster: RedisCluster) -> None:
    findings = await run_checks(redis_cluster.url)

    assert names(findings) == set()
    assert len({finding.server for finding in findings}) == 3


async def test_sentinel_without_min_replicas_is_warned_of(redis_sentinel: RedisSentinel) -> None:
    findings = await run_checks(redis_sentinel.url)

    assert names(findings) == {"replication"}
    assert one(findings, "replication").server == f"127.0.0.1:{redis_sentinel.master.port}"


# -- getting there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "http://localhost", "redis://h/x/y", "redis+cluster://h/1"])
async def test_url_that_cannot_be_used(url: str) -> None:
    findings = await run_checks(url)

    assert one(findings, "url").exit_code == exit_code(findings) == 78


async def test_nobody_is_reachable_there(free_port: int) -> None:
    for url in ("unix:///nowhere/redis.sock", f"redis://127.0.0.1:{free_port}"):
        findings = await run_checks(url)

        assert one(findings, "reachable").exit_code == exit_code(findings) == 69


async def test_frozen_server_is_unreachable_in_time(start_redis: StartRedis) -> None:
    server = await start_redis()
    server.pause()

    findings = await run_checks(server.url, timeout_seconds=0.3)

    assert names(findings) == {"reachable"}


async def test_plain_connection_to_a_tls_port_is_unreachable_with_a_hint(redis_tls_acl: TlsServer) -> None:
    findings = await run_checks(f"redis://127.0.0.1:{redis_tls_acl.tls_port}", timeout_seconds=2)

    assert "rediss://" in one(findings, "reachable").advice


async def test_server_that_is_loading_is_temporary(start_redis: StartRedis) -> None:
    server = await start_redis({"appendonly": "no", "rdbcompression": "no"})
    for number in range(100):
        await server.cli("SET", f"k{number}", "v" * 2_000)
    await server.cli("SAVE")
    await server.kill()
    server.configure({"key-load-delay": "50000", "loading-process-events-interval-bytes": "1024"})
    await server.start(wait=False)
    await eventually(lambda: is_loading(server))

    findings = await run_checks(server.url)

    assert one(findings, "loading").exit_code == exit_code(findings) == 75


async def test_server_without_a_free_connection(start_redis: StartRedis) -> None:
    server = await start_redis()
    await server.cli("CONFIG", "SET", "maxclients", "1")
    with socket.socket(socket.AF_UNIX) as held:
        held.connect(str(server.socket))

        findings = await run_checks(server.url)

    assert one(findings, "clients.full").exit_code == 75


async def test_server_busy_with_a_script(start_redis: StartRedis) -> None:
    server = await start_redis({"lua-time-limit": "50"})
    endless = asyncio.create_task(asyncio.to_thread(server.cli_sync, "EVAL", "while true do end", "0"))
    await eventually(lambda: "BUSY" in str(server.cli_sync("PING")))

    findings = await run_checks(server.url)

    assert one(findings, "busy").exit_code == exit_code(findings) == 75
    await server.cli("SCRIPT", "KILL")
    await endless


@pytest.mark.parametrize("version", ["5.0", "6.2", "7.0"])
async def test_login_that_is_missing_or_wrong(start_redis: StartRedis, version: str) -> None:
    server = await start_redis({"requirepass": "right-password"}, version=version, limited=False)

    missing = await run_checks(server.url)
    wrong = await run_checks(server.url.replace("unix://", "unix://:wrong-password@"))

    assert exit_code(missing) == exit_code(wrong) == 77
    assert names(missing) == {"login.missing"}
    assert names(wrong) == {"login"}
    assert "wrong-password" not in str(wrong)


async def test_database_that_is_not_there(redis70: RedisServer) -> None:
    findings = await run_checks(redis70.url + "?db=99")

    assert one(findings, "database").exit_code == exit_code(findings) == 78


# -- what it is --------------------------------------------------------------------------------------------------------


async def test_single_server_url_of_a_cluster(redis_cluster: RedisCluster) -> None:
    findings = await run_checks(redis_cluster.nodes[0].tcp_url)

    assert names(findings) == {"mode.cluster"}
    assert exit_code(findings) == 78


async def test_cluster_url_of_a_single_server(start_redis: StartRedis, free_port: int) -> None:
    await start_redis(port=free_port)

    findings = await run_checks(f"redis+cluster://127.0.0.1:{free_port}")

    assert names(findings) == {"mode.not-cluster"}
    assert exit_code(findings) == 78


async def test_data_url_of_a_sentinel(redis_sentinel: RedisSentinel) -> None:
    sentinel = redis_sentinel.sentinels[0]
    findings = await run_checks(sentinel.tcp_url.replace("//", f"//{':'.join(sentinel.credentials)}@"))

    assert names(findings) == {"mode.sentinel"}
    assert exit_code(findings) == 78


async def test_data_url_of_a_sentinel_that_gives_nobody_more_than_the_minimal_rights(free_port: int) -> None:
    sentinel = RedisServer(need_redis70(), port=free_port, mode="sentinel", limited=(7, 0))
    try:
        await sentinel.start()
        findings = await run_checks(sentinel.tcp_url)
    finally:
        sentinel.remove_sync()

    assert names(findings) == {"mode.sentinel"}
    assert exit_code(findings) == 78


async def test_service_that_the_sentinels_do_not_know(redis_sentinel: RedisSentinel) -> None:
    findings = await run_checks(redis_sentinel.url.replace("/tailrace/", "/other/"))

    assert "other" in one(findings, "sentinel.master").text
    assert exit_code(findings) == 69


@pytest.mark.parametrize("slots", [False, True])
async def test_cluster_with_missing_slots_is_down(start_redis: StartRedis, free_port: int, slots: bool) -> None:
    server = await start_redis({"cluster-enabled": "yes", "cluster-port": str(find_port())}, port=free_port)
    if slots:
        await server.cli("CLUSTER", "ADDSLOTSRANGE", 0, 8_000)

    findings = await run_checks(f"redis+cluster://127.0.0.1:{free_port}")

    assert names(findings) == {"cluster.down"}
    assert exit_code(findings) == 69


async def test_cluster_before_7_has_no_sharded_push(start_redis: StartRedis) -> None:
    # Its bus cannot be set before 7.0: it is 10 000 later.
    server = await start_redis({"cluster-enabled": "yes"}, version="6.2", port=find_port(pair=10_000))
    for first in range(0, 16_384, 1_024):
        await server.cli("CLUSTER", "ADDSLOTS", *range(first, first + 1_024))
    await eventually(lambda: "cluster_state:ok" in str(server.cli_sync("CLUSTER", "INFO")))

    findings = await run_checks(f"redis+cluster://127.0.0.1:{server.port}")

    assert names(findings) == {"version.cluster"}


async def test_replica_names_its_master(redis_sentinel: RedisSentinel) -> None:
    findings = await run_checks(redis_sentinel.replica.tcp_url)

    assert str(redis_sentinel.master.port) in one(findings, "replica").text
    assert names(findings) == {"replica"}
    assert exit_code(findings) == 78


async def test_oldest_server_works_and_is_told_what_it_lacks(start_redis: StartRedis) -> None:
    server = await start_redis(version="5.0")

    findings = await run_checks(server.url)

    assert names(findings) == {"version.old"}
    assert exit_code(findings) == 0
    assert exit_code(findings, strict=True) == 1
    assert "5.0" in one(findings, "version").text


STREAM_COMMANDS = ("XADD", "XRANGE", "XREVRANGE", "XREAD", "XLEN", "XTRIM", "XDEL", "XINFO", "XGROUP", "XREADGROUP")


async def test_server_without_streams_is_pubsub_only(start_redis: StartRedis) -> None:
    server = await start_redis({"rename-command": [f'{name} ""' for name in STREAM_COMMANDS]}, version="5.0")

    wanted = await run_checks(server.url)
    switched_off = await run_checks(server.url, streams_enabled=False)

    assert "only Pub/Sub" in one(wanted, "streams.missing").text
    assert exit_code(wanted) == 78
    assert one(switched_off, "streams.off").level is Level.WARNING
    assert exit_code(switched_off) == 0


async def test_command_that_was_removed_is_named(start_redis: StartRedis) -> None:
    server = await start_redis({"rename-command": ['EVALSHA ""', 'PUBLISH "hidden"']}, version="6.2")

    findings = await run_checks(server.url)

    assert one(findings, "commands").text.startswith("the server does not know EVALSHA, PUBLISH ")
    assert exit_code(findings) == 78


# -- writing -----------------------------------------------------------------------------------------------------------


async def test_disk_that_cannot_be_written(start_redis: StartRedis) -> None:
    server = await start_redis({"appendonly": "no", "save": "3600 1", "dbfilename": "taken"})
    await asyncio.to_thread((server.folder / "taken").mkdir)
    await server.cli("BGSAVE")
    await eventually(lambda: "rdb_last_bgsave_status:err" in str(server.cli_sync("INFO", "persistence")))

    findings = await run_checks(server.url)

    assert "snapshot" in one(findings, "writes.disk").text
    assert exit_code(findings) == 69


@pytest.mark.parametrize("version", ["6.2", "7.0"])
async def test_refusal_of_another_kind_is_told_in_the_servers_words(start_redis: StartRedis, version: str) -> None:
    # Another command answers to the name of ours, as behind a proxy that knows only some of them.
    server = await start_redis({"rename-command": ['SET ""', "GETSET SET"]}, version=version, limited=False)

    findings = await run_checks(server.url)

    assert "wrong number of arguments" in one(findings, "writes").text
    assert exit_code(findings) == 69


async def test_memory_that_is_nearly_full(start_redis: StartRedis) -> None:
    server = await start_redis()
    used = int((await server.info("memory"))["used_memory"])
    await server.cli("CONFIG", "SET", "maxmemory", used * 10 // 9)

    findings = await run_checks(server.url)

    assert "memory.nearly-full" in names(findings)


async def test_memory_without_a_limit_is_mentioned(redis62: RedisServer) -> None:
    assert one(await run_checks(redis62.url), "memory.unlimited").level is Level.INFO


# -- rights ------------------------------------------------------------------------------------------------------------


async def url_of_user(server: RedisServer, version: tuple[int, int], *changes: str) -> str:
    await server.cli("ACL", "SETUSER", "u", "reset", "on", ">pw", *acl_rules("t:", version), *changes)
    return server.url.replace("unix://", "unix://u:pw@")


RIGHTS = {
    "acl.commands": ("-evalsha", "-xadd"),
    "acl.keys": ("resetkeys", "~other:*"),
    "acl.channels": ("resetchannels", "&other:*"),
    "acl.unchecked": ("-multi",),
    "facts.unread": ("-info", "-config"),
}


@pytest.mark.parametrize("version", ["6.2", "7.0"])
@pytest.mark.parametrize("check", RIGHTS)
async def test_missing_right_is_named_with_the_rule_that_gives_it(
    start_redis: StartRedis, check: str, version: str
) -> None:
    server = await start_redis(version=version)
    url = await url_of_user(server, (6, 2) if version == "6.2" else (7, 0), *RIGHTS[check])

    findings = await run_checks(url, key_prefix="t:")

    found = one(findings, check)
    assert found.advice.removeprefix("To have them checked: ").startswith(("ACL SETUSER u ", "To have it checked: "))
    assert exit_code(findings) == (0 if found.level is Level.INFO else 77)
    rules = found.advice.rpartition("SETUSER u ")[2].split()
    await server.cli("ACL", "SETUSER", "u", *rules)
    assert check not in {finding.check for finding in await run_checks(url, key_prefix="t:")}


async def test_refused_commands_are_listed(start_redis: StartRedis) -> None:
    server = await start_redis()
    url = await url_of_user(server, (7, 0), "-evalsha", "-xadd", "-script")

    found = one(await run_checks(url, key_prefix="t:"), "acl.commands")

    assert found.text == "user u may not use XADD, EVALSHA, SCRIPT LOAD"
    assert found.advice == "ACL SETUSER u +xadd +evalsha +script|load"


async def test_rights_are_looked_at_without_doing_anything(redis70: RedisServer, key_prefix: str) -> None:
    await run_checks(redis70.url, key_prefix=key_prefix)

    await eventually(lambda: redis70.cli_sync("KEYS", key_prefix + "*") == [])


def test_every_script_stays_within_the_published_rights() -> None:
    import re

    import tailrace.eventlog.redis as package
    from tailrace.eventlog.acl import CHECK_COMMANDS, needed_commands

    allowed = {name.partition("|")[0] for name in (*needed_commands((7, 0)), *CHECK_COMMANDS)}
    used = {
        name
        for path in Path(package.__file__).parent.rglob("*.lua")
        for name in re.findall(r"redis\.p?call\(\s*'([A-Za-z]+)'", path.read_text())
    }
    assert used
    assert used <= allowed


def test_the_page_names_exactly_these_rights() -> None:
    page = (Path(__file__).parents[3] / "docs" / "redis-user.md").read_text()

    block = page.partition("```text\n")[2].partition("```")[0].split()
    assert block[:5] == ["ACL", "SETUSER", "tailrace", "on", ">PASSWORD"]
    assert block[5:] == acl_rules("tailrace:")
    assert f"`ACL SETUSER tailrace on >PASSWORD {' '.join(sentinel_rules())}`" in page
    assert set(acl_rules("tailrace:")) - set(acl_rules("tailrace:", (6, 2))) == {
        "+spublish",
        "+ssubscribe",
        "+sunsubscribe",
        "+cluster|shards",
    }


# -- around it ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "text"), [(10.0, "behind"), (-10.0, "ahead of")])
async def test_clock_that_differs(redis70: RedisServer, ahead: float, text: str) -> None:
    findings = await run_checks(redis70.url, clock=lambda: time.time() + ahead)

    assert text in one(findings, "clock").text
    assert "clock" not in names(await run_checks(redis70.url))


async def test_tls_without_verification_is_warned_of(redis_tls_acl: TlsServer) -> None:
    url = redis_tls_acl.url.partition("?")[0] + "?ssl_cert_reqs=none"

    assert "tls.unverified" in names(await run_checks(url, key_prefix="t"))


def own_address() -> str:
    """An address of this machine that is not its loopback: what another machine would connect to."""
    known = [each for addresses in psutil.net_if_addrs().values() for each in addresses]
    own = [each.address for each in known if each.family is socket.AF_INET]
    found = next((address for address in own if not ipaddress.ip_address(address).is_loopback), None)
    return found or absent("an address beside 127.0.0.1", "connect the machine to a network")


@pytest.mark.parametrize("version", ["6.2", "7.0"])
async def test_server_on_a_network_without_tls_or_password_is_warned_of(
    start_redis: StartRedis, free_port: int, version: str
) -> None:
    address = own_address()
    door = {"bind": f"127.0.0.1 {address}", "protected-mode": "no"}
    server = await start_redis(door, version=version, port=free_port, limited=False)

    open_door = await run_checks(f"redis://{address}:{free_port}")
    await server.cli("CONFIG", "SET", "requirepass", "p")
    locked = await run_checks(f"redis://:p@{address}:{free_port}")
    server.credentials = ("p",)
    local = await run_checks(f"redis://:p@127.0.0.1:{free_port}")

    assert names(open_door) == {"tls.off", "login.open"}
    assert names(locked) == {"tls.off"}
    assert names(local) == set()


async def test_server_on_a_network_with_tls_and_password_is_fine() -> None:
    address = own_address()
    server = TlsServer(need_redis70())
    server.configure({"bind": f"127.0.0.1 {address}"})
    try:
        await server.start()
        url = server.url.replace("@127.0.0.1:", f"@{address}:") + "&ssl_check_hostname=false"

        findings = await run_checks(url, key_prefix="t")
    finally:
        await asyncio.to_thread(server.remove_sync)

    assert names(findings) == set()


async def test_names_and_addresses_of_other_machines_are_told_from_our_own(redis70: RedisServer) -> None:
    facts = await facts_of(redis70)
    for host in ("10.1.2.3", "redis.example.com", "fd00::1"):
        open_door = msgspec.structs.replace(facts, endpoint=Endpoint(host=host, port=6379))

        assert {"tls.off", "login.open"} <= names(list(judge(open_door, prefix="t:")))
    for host in ("127.0.0.1", "::1", "localhost"):
        local = msgspec.structs.replace(facts, endpoint=Endpoint(host=host, port=6379))

        assert names(list(judge(local, prefix="t:"))) == set()


# -- the table ---------------------------------------------------------------------------------------------------------


async def test_allowed_error_is_only_warned_of(start_redis: StartRedis) -> None:
    server = await start_redis({"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"})

    findings = await run_checks(server.url, allow=("eviction",))

    assert one(findings, "eviction").level is Level.WARNING
    assert exit_code(findings) == 0


async def test_errors_come_first(start_redis: StartRedis) -> None:
    server = await start_redis({"maxmemory": "100mb", "maxmemory-policy": "volatile-lru", "appendonly": "no"})

    levels = [list(Level).index(finding.level) for finding in await run_checks(server.url)]

    assert levels == sorted(levels)


async def test_several_checks_run_at_once_without_harm(redis70: RedisServer) -> None:
    results = await asyncio.gather(*(run_checks(redis70.url) for _ in range(5)))

    assert {frozenset(names(findings)) for findings in results} == {frozenset()}


def test_every_row_is_tested_here() -> None:
    text = Path(__file__).read_text()

    assert [name for name in CHECKS if f'"{name}"' not in text] == []


def test_every_error_has_advice_and_a_code() -> None:
    for row in CHECKS.values():
        assert bool(row.exit_code) == (row.level is Level.ERROR)
        assert row.advice or row.level is Level.INFO
