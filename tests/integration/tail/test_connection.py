"""One connection: replies in order whatever callers do, errors that say what was written, logins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.redis_topologies import TlsServer
from tests.support.wait import eventually

from tailrace.errors import ConfigError, LogTimeout, LogUnavailable
from tailrace.eventlog.redis.connection import (
    CommandFailed,
    Connection,
    ConnectionLost,
    LoginRefused,
    ReplyError,
    ReplyLate,
)
from tailrace.eventlog.redis.endpoint import Address, Endpoint


def endpoint(url: str) -> Endpoint:
    return Address.parse(url).data


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest_asyncio.fixture
async def connection(every_redis: RedisServer) -> AsyncIterator[Connection]:
    made = await Connection.open(endpoint(every_redis.admin_url), deadline=soon())
    yield made
    made.abort()
    await made.closed


@pytest_asyncio.fixture
async def private(start_redis: StartRedis) -> RedisServer:
    return await start_redis({"enable-debug-command": "yes"})


async def test_replies_belong_to_their_commands_when_neighbours_are_cancelled(connection: Connection) -> None:
    chance = random.Random(1)
    echoes = []
    for number in range(3_000):
        future = connection.send("ECHO", number)
        if chance.random() < 0.5:
            asyncio.get_running_loop().call_later(chance.random() / 100, future.cancel)
        echoes.append((number, future))
        if chance.random() < 0.1:
            await asyncio.sleep(0)
    for number, future in echoes:
        try:
            assert await future == str(number).encode()
        except asyncio.CancelledError:
            assert future.cancelled()

    assert await connection.call("ECHO", "last", deadline=soon()) == b"last"
    assert connection.waiting == 0


async def test_a_command_cancelled_before_it_is_written_is_never_sent(connection: Connection, key_prefix: str) -> None:
    futures = [connection.send("INCR", f"{key_prefix}n") for _ in range(10)]
    for future in futures[::2]:
        future.cancel()

    await asyncio.wait(futures[1::2])

    assert await connection.call("GET", f"{key_prefix}n", deadline=soon()) == b"5"


async def test_an_error_reply_carries_its_code(connection: Connection, key_prefix: str) -> None:
    await connection.call("SET", f"{key_prefix}s", "text", deadline=soon())

    with pytest.raises(ReplyError) as caught:
        await connection.call("XADD", f"{key_prefix}s", "*", "a", "b", deadline=soon())

    assert caught.value.code == "WRONGTYPE"
    assert await connection.call("PING", deadline=soon()) == b"PONG"


async def test_a_late_reply_is_dropped_and_the_next_is_right(connection: Connection) -> None:
    with pytest.raises(ReplyLate) as caught:
        await connection.call("BLPOP", "nothing-is-here", 1, deadline=soon(0.05))

    assert caught.value.written
    assert isinstance(caught.value, LogTimeout)
    assert await connection.call("ECHO", "next", deadline=soon()) == b"next"


async def test_a_deadline_that_passed_before_the_write_says_so(connection: Connection) -> None:
    with pytest.raises(ReplyLate) as caught:
        await connection.call("PING", deadline=soon(-1))

    assert not caught.value.written


async def test_a_lost_connection_says_what_was_written(connection: Connection) -> None:
    written = connection.send("BLPOP", "nothing-is-here", 5)
    await eventually(lambda: connection.waiting == 1)
    waiting = connection.send("PING")
    connection.abort()
    after = connection.send("PING")

    errors = await asyncio.gather(written, waiting, after, return_exceptions=True)

    assert all(isinstance(error, ConnectionLost) for error in errors)
    assert [error.written for error in errors if isinstance(error, ConnectionLost)] == [True, False, False]
    assert connection.closed.done()
    with pytest.raises(ConnectionLost):
        await connection.call("PING", deadline=soon())


async def test_a_killed_server_fails_its_callers_at_once(private: RedisServer) -> None:
    connection = await Connection.open(endpoint(private.admin_url), deadline=soon())
    blocked = connection.send("BLPOP", "nothing-is-here", 30)
    await asyncio.sleep(0)

    await private.kill()

    with pytest.raises(ConnectionLost) as caught:
        await asyncio.wait_for(blocked, 1)
    assert caught.value.written


async def test_what_a_server_does_not_read_is_bounded(private: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.eventlog.redis.connection.MAX_UNSENT_BYTES", 1_000_000)
    connection = await Connection.open(endpoint(private.admin_url), deadline=soon())
    private.pause()
    try:
        futures = []
        for _ in range(40):
            futures.append(connection.send("SET", "k", b"x" * 100_000))
            await asyncio.sleep(0)
        refused = [future for future in futures if future.done()]

        assert refused
        assert connection.unsent_bytes < 2_000_000
        for future in refused:
            error = future.exception()
            assert isinstance(error, CommandFailed)
            assert not error.written
    finally:
        private.resume()
    assert await futures[0] == b"OK"
    connection.abort()
    await connection.closed


async def test_many_replies_leave_turns_for_others(private: RedisServer) -> None:
    connection = await Connection.open(endpoint(private.admin_url), deadline=soon())
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counter = asyncio.create_task(count())
    private.pause()
    futures = [connection.send("PING") for _ in range(20_000)]
    await asyncio.sleep(0.05)
    turns = 0
    private.resume()
    await asyncio.gather(*futures)
    counter.cancel()

    assert turns >= 10
    connection.abort()
    await connection.closed


async def test_the_client_has_its_name_and_database(every_redis: RedisServer) -> None:
    url = f"{every_redis.admin_url}?db=3&client_name=somebody"
    connection = await Connection.open(endpoint(url), deadline=soon())

    assert await connection.call("CLIENT", "GETNAME", deadline=soon()) == b"somebody"
    clients = (await connection.call("CLIENT", "LIST", deadline=soon())).decode()
    assert any("name=somebody" in line and " db=3 " in line for line in clients.splitlines())
    connection.abort()
    await connection.closed


async def test_every_reply_of_a_push_connection_is_a_push(every_redis: RedisServer, key_prefix: str) -> None:
    pushes: list[object] = []

    def pushed(reply: object) -> int:
        pushes.append(reply)
        return 1

    connection = await Connection.open(endpoint(every_redis.admin_url), deadline=soon(), on_push=pushed)
    connection.post("SUBSCRIBE", f"{key_prefix}a")
    connection.post("NO-SUCH-COMMAND")
    await eventually(lambda: len(pushes) == 2)
    await every_redis.cli("PUBLISH", f"{key_prefix}a", "hello")
    await eventually(lambda: len(pushes) == 3)

    channel = f"{key_prefix}a".encode()
    assert pushes[0] == [b"subscribe", channel, 1]
    assert isinstance(pushes[1], ReplyError)
    assert pushes[2] == [b"message", channel, b"hello"]
    connection.abort()
    await connection.closed


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///no/such.sock", "redis://no-such-host.invalid:1"])
async def test_what_cannot_be_reached_is_unavailable(url: str) -> None:
    with pytest.raises(LogUnavailable):
        await Connection.open(endpoint(url), deadline=soon(3))


async def test_a_server_that_accepts_and_says_nothing_times_out(private: RedisServer) -> None:
    private.pause()
    try:
        with pytest.raises(LogTimeout):
            await Connection.open(endpoint(private.admin_url), deadline=soon(0.2))
    finally:
        private.resume()


async def test_a_server_that_loads_its_data_is_unavailable(start_redis: StartRedis) -> None:
    server = await start_redis({"enable-debug-command": "yes", "appendonly": "no"})
    await server.cli("DEBUG", "POPULATE", 2_000)
    await server.cli("CONFIG", "SET", "key-load-delay", 1_000)
    await server.cli("CONFIG", "SET", "loading-process-events-interval-bytes", 1_024)
    loading = asyncio.create_task(asyncio.to_thread(server.cli_sync, "DEBUG", "RELOAD"))

    async def refused() -> bool:
        try:
            connection = await Connection.open(endpoint(server.url), deadline=soon())
        except LogUnavailable as exc:
            return "loading" in str(exc)
        connection.abort()
        return False

    await eventually(refused, 4)
    await server.cli("CONFIG", "SET", "key-load-delay", 0)
    await loading


@pytest.mark.parametrize("version", ["5.0", "7.0"])
async def test_a_wrong_password_is_refused_and_not_repeated(start_redis: StartRedis, version: str) -> None:
    server = await start_redis({"requirepass": "correct"}, version=version, limited=False)
    server.credentials = ("correct",)

    connection = await Connection.open(endpoint(f"unix://:correct@{server.socket}"), deadline=soon())
    assert await connection.call("PING", deadline=soon()) == b"PONG"
    connection.abort()
    await connection.closed
    for url in (f"unix://:s3cret@{server.socket}", f"unix://{server.socket}"):
        with pytest.raises(LoginRefused) as caught:
            await Connection.open(endpoint(url), deadline=soon())
        told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r} {endpoint(url)!r}"
        assert "s3cret" not in told


async def test_tls_checks_the_authority_and_the_name(redis_tls_acl: TlsServer) -> None:
    good = await Connection.open(endpoint(redis_tls_acl.url), deadline=soon())
    assert await good.call("PING", deadline=soon()) == b"PONG"
    good.abort()
    await good.closed

    plain_url = redis_tls_acl.url.partition("?")[0]
    with pytest.raises(LogUnavailable):
        await Connection.open(endpoint(plain_url), deadline=soon())
    with pytest.raises(LogUnavailable):
        await Connection.open(endpoint(redis_tls_acl.url + "&ssl_server_hostname=elsewhere"), deadline=soon())
    with pytest.raises(ConfigError):
        await Connection.open(endpoint(plain_url + "?ssl_ca_certs=/no/such.pem"), deadline=soon())
    unchecked = await Connection.open(endpoint(plain_url + "?ssl_cert_reqs=none"), deadline=soon())
    unchecked.abort()
    await unchecked.closed
