"""What Redis sees: only commands of a list, only keys under the prefix, no pattern, and nothing of a name that is
refused. Seen by MONITOR, which shows the commands inside scripts too."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from tailrace.app import create_app
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName, escape_name
from tailrace.errors import InvalidStream
from tailrace.eventlog.acl import CHECK_COMMANDS, needed_commands
from tailrace.eventlog.redis.keys import Keys
from tests.security.routes import wheres
from tests.support.gateway import settings_of
from tests.support.redis_servers import RedisServer
from tests.support.serving import serving
from tests.support.tokens import token
from tests.support.wait import eventually
from tests.support.ws import Gate

ROOT = token("root", admin=True)
BEARER = {"Authorization": f"Bearer {ROOT}"}
ALLOWED = {
    *(
        "PING",
        "SELECT",
        "CLIENT",
        "AUTH",
        "HELLO",
        "TIME",
        "SCRIPT",
        "EVAL",
        "EVALSHA",
        "ACL",
        "INFO",
        "CONFIG",
        "MEMORY",
    ),
    *("XADD", "XRANGE", "XREVRANGE", "XREAD", "XLEN", "XTRIM", "XINFO", "XDEL"),
    *("HGET", "HMGET", "HGETALL", "HSET", "HDEL", "HLEN", "HINCRBY", "HEXISTS"),
    *("EXISTS", "TYPE", "DEL", "UNLINK", "PTTL", "PEXPIRE", "PEXPIREAT", "PERSIST", "EXPIRE"),
    *("GET", "SET", "ZADD", "ZREM", "ZCARD", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE"),
    *("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE", "ROLE", "WAIT"),
}
"""What a gateway may send. KEYS, SCAN and PSUBSCRIBE take patterns and are not in it."""
CHANNELS = {"PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"}
NO_KEYS = {
    *("PING", "SELECT", "CLIENT", "AUTH", "HELLO", "TIME", "SCRIPT", "ACL", "INFO", "CONFIG", "ROLE", "WAIT"),
}

HOSTILE = [
    *("run:{canary}", "run:canary*", "run:canary?", "run:[canary]", "run:canary\\", "run:canary:b", "run:../canary"),
    *("run:canary/..", "run:canary b", "run:canary\x00", "run:canary\r\nDEL x", "run:canary'; --", 'run:"canary"'),
    *("run:\u0441anary\u0430canary", "run:canary\u202e", "run:ca\u0301canary", "run:\uff43anary-canary", "RUN:canary"),
    *("run:canary%00", "run:.canary", "run:~canary", "run:", ":canary", "run", "run:" + "canary" * 40, "r*n:canary"),
    *("run:canary\u2028", "run:canary\x85", "ru{n}:canary", "run:canary|x", "run:$canary", "run:<canary>", "canary:*"),
]


class Seen(NamedTuple):
    """One command."""

    name: str
    arguments: list[str]
    by_script: bool


_LINE = re.compile(r"^\+?[\d.]+ \[\d+ ([^\]]+)\] (.*)$")


def _parse(line: str) -> Seen | None:
    found = _LINE.match(line)
    if found is None:
        return None
    words = shlex.split(found[2])
    return Seen(words[0].upper(), words[1:], found[1] == "lua")


@asynccontextmanager
async def monitored(server: RedisServer) -> AsyncIterator[list[str]]:
    """The lines of MONITOR, from the administrator's own connection."""
    reader, writer = await asyncio.open_unix_connection(str(server.socket), limit=1 << 24)
    writer.write(f"AUTH {' '.join(server.credentials)}\r\nMONITOR\r\n".encode())
    assert [await reader.readline(), await reader.readline()] == [b"+OK\r\n"] * 2
    lines: list[str] = []

    async def read() -> None:
        while line := await reader.readline():
            lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))

    reading = asyncio.create_task(read())
    try:
        yield lines
        await server.cli("ECHO", "the end of the watch")
        await eventually(lambda: any("the end of the watch" in line for line in lines), 20)
    finally:
        reading.cancel()
        writer.transport.abort()
        await asyncio.gather(reading, return_exceptions=True)


class Whole(Gate):
    """A gate that knows its application."""

    app: FastAPI


async def workload(gate: Gate, http: httpx.AsyncClient) -> None:
    """Everything a gateway can do, with text of a user wherever there may be some."""
    api = "/api/v1"
    nasty = "canary*?[a]{b}\r\n"
    for stream in ("run:1", "user:root", "system:all", "unheard-of:x"):
        events = [
            {"type": f"t.{number}", "data": {nasty: nasty}, "uid": f"*canary{number}", "key": "[k]*"}
            for number in range(5)
        ]
        for _ in range(2):
            answer = await http.post(f"{api}/streams/{stream}/events", json=events)
            assert answer.status_code == 201, answer.text
        ids = [each["id"] for each in answer.json()["events"]]
        await http.post(f"{api}/streams/{stream}/events", json={"type": "n"}, headers={"Idempotency-Key": "*canary*"})
        for query in ("", "?order=desc&limit=2", f"?since_id={ids[0]}", "?types=t.1,t.2"):
            assert (await http.get(f"{api}/streams/{stream}/events{query}")).status_code == 200
        assert (await http.get(f"{api}/streams/{stream}")).status_code == 200
        assert (await http.get(f"{api}/events/history?stream={stream}&stream=task:9")).status_code == 200
        assert (await http.get(f"{api}/events/poll?stream={stream}&cursor={ids[0]}&timeout=0")).status_code == 200
    short = (await http.post(f"{api}/auth/sse-token")).json()["sse_token"]
    async with gate.server.client() as client:
        await client.get(f"{api}/events/stream?stream=run:1&sse_token={short}&connection=canary")
        await client.until(b"event: stream.open", 30)
        async with gate.wire(jwt=ROOT) as wire:
            await wire.ask("subscribe", streams={"run:1": "", "unheard-of:x": "0"})
            await wire.say("publish", stream="task:1", events={"type": "n", "uid": "canary*"})
            await wire.say("subscribe", stream="run:canary*")
            await wire.say("publish", stream="run:{canary}", events={"type": "n"})
            replies = 0
            while replies < 3:
                replies += "reply" in await wire.get(30)
        await gate.gateway.connections.check()
    await run_workload(http, f"{api}/runs")
    await http.post(f"{api}/streams/run:1/close")
    await http.delete(f"{api}/streams/run:1")
    await http.post(f"{api}/auth/revoke", json={"jti": "*canary*"})
    for path in ("/events/health", "/healthz", "/readyz", "/metrics"):
        await http.get(path)


async def run_workload(http: httpx.AsyncClient, api: str) -> None:
    """Everything that is done with a run."""
    nasty = "canary*?[a]{b}"
    for run_id, end in (("1", "complete"), ("2", "fail"), ("3", "cancel")):
        made = await http.post(api, json={"id": run_id, "title": nasty, "owner": nasty, "metadata": {nasty: nasty}})
        assert made.status_code == 201, made.text
        claimed = (await http.post(f"{api}/{run_id}/claim", json={"producer": nasty})).json()
        held = {"id": run_id, "epoch": claimed["epoch"]}
        assert (await http.post(f"{api}/leases", json={"runs": [held]})).status_code == 200
        events = f"{api}/{run_id}/events"
        assert (await http.post(f"{events}?epoch={held['epoch']}", json={"type": "n"})).status_code == 201
        assert (await http.post(f"{api}/{run_id}/cancel")).status_code == 200
        ended = await http.post(f"{api}/{run_id}/{end}", json={"epoch": held["epoch"]})
        assert ended.status_code == 200, ended.text
        assert (await http.get(events)).status_code == 200
    assert (await http.get(api, params={"owner": nasty})).status_code == 200


async def refuse_all(gate: Whole, http: httpx.AsyncClient) -> None:
    """Every hostile name on every route that takes a name."""
    for where in wheres(gate.app):
        if where.method == "WS" or not where.path.startswith(("/api/v1/streams/", "/api/v1/runs/{run_id}")):
            continue
        for name in filter(where.takes, HOSTILE):
            rest = name.partition(":")[2]
            path = where.at(f"run:{quote(rest, safe='')}" if "{run_id}" in where.path else quote(name, safe=""))
            answer = await http.request(where.method, path, json={"type": "n"} if where.method == "POST" else None)
            assert answer.status_code in (400, 404), (where, name, answer.status_code, answer.text)
            assert answer.status_code == 400 or "/" in name or name == "run:", (where, name)
    for name in HOSTILE:
        for path in ("history", "poll", "stream"):
            answer = await http.get(f"/api/v1/events/{path}", params={"stream": name, "timeout": "0"})
            assert answer.status_code == 400, (path, name)


@asynccontextmanager
async def gated(
    server: RedisServer, prefix: str, delivery: str, folder: Path
) -> AsyncIterator[tuple[Whole, httpx.AsyncClient]]:
    given = settings_of(redis_url=server.url, key_prefix=prefix, delivery=delivery, runs_enabled=True, data_dir=folder)
    app = create_app(given)
    async with (
        serving(app) as served,
        httpx.AsyncClient(base_url=served.url, headers=BEARER, timeout=60, trust_env=False, verify=False) as http,
    ):
        gate = Whole(served, app.state.gateway, app.state.gateway.log)
        gate.app = app
        yield gate, http


async def _keys(server: RedisServer, commands: Iterable[Seen]) -> set[str]:
    """The keys and channels of commands, as Redis itself finds them."""
    found: set[str] = set()
    for seen in commands:
        if seen.name in CHANNELS:
            found |= set(seen.arguments[:1] if seen.name == "PUBLISH" else seen.arguments)
        elif seen.name in ("EVAL", "EVALSHA"):
            found |= set(seen.arguments[2 : 2 + int(seen.arguments[1])])
        elif seen.name not in NO_KEYS:
            keys = await asyncio.to_thread(server.cli_sync, "COMMAND", "GETKEYS", seen.name, *seen.arguments)
            assert isinstance(keys, list), (seen, keys)
            found |= set(keys)
    return found


def test_what_a_gateway_may_send_is_what_its_user_may_send() -> None:
    named = {each.partition("|")[0] for each in (*needed_commands((7, 0)), *CHECK_COMMANDS)}

    assert ALLOWED - {"AUTH", "HELLO"} <= named
    assert not named & {"KEYS", "PSUBSCRIBE", "FLUSHALL", "FLUSHDB", "DEBUG", "SHUTDOWN", "MODULE", "SORT", "MIGRATE"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("delivery", ["push", "xread"])
async def test_redis_sees_commands_of_the_list_and_keys_under_the_prefix_only(
    delivery: str, redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    async with monitored(redis70) as lines, gated(redis70, key_prefix, delivery, tmp_path) as (gate, http):
        await workload(gate, http)

    mine = [each for each in map(_parse, lines) if each is not None and each.name not in ("ECHO", "MONITOR")]
    assert {each.name for each in mine} - ALLOWED == set()
    assert {"XADD", "EVALSHA", "HSET"} <= {each.name for each in mine}
    distinct = {json.dumps(each[:2]): each for each in mine}
    keys = await _keys(redis70, distinct.values())
    assert len(keys) > 10
    assert {each for each in keys if not each.startswith(key_prefix)} == set()
    # A uid, a jti and a connection's name are members, never part of a key: only checked names and hashes are.
    assert {each for each in keys if "canary" in each} == set()


@pytest.mark.timeout(180)
async def test_nothing_of_a_refused_name_reaches_redis(redis70: RedisServer, key_prefix: str, tmp_path: Path) -> None:
    async with monitored(redis70) as lines, gated(redis70, key_prefix, "push", tmp_path) as (gate, http):
        await refuse_all(gate, http)

    assert [line for line in lines if "canary" in line] == []


# -- names and keys ----------------------------------------------------------------------------------------

streams = st.builds(
    lambda kind, first, rest: StreamName.parse(f"{kind}:{first}{rest}"),
    st.text("ab-", min_size=0, max_size=3).map(lambda text: "a" + text),
    st.sampled_from("aA1"),
    st.text("aA1._~@-", max_size=8),
)


@given(streams, streams)
def test_two_streams_never_share_a_key(one: StreamName, other: StreamName) -> None:
    keys = Keys(Kinds([]), prefix="t:")

    assert len({*keys.of(one), *keys.of(other)}) == (4 if one == other else 8)


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_two_subjects_never_share_a_stream(one: str, other: str) -> None:
    try:
        names = {escape_name(one), escape_name(other)}
    except (InvalidStream, UnicodeEncodeError):
        return

    assert len(names) == (1 if one == other else 2)
    for name in names:
        StreamName.parse(f"user:{name}")
