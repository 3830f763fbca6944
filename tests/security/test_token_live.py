"""Tokens on what stays open: each transport ends in time, one short token serves one, and neither kind stands in for
the other."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tailrace.app import create_app
from tailrace.codes import CloseCode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError, Unauthorized
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.gateway import Gateway
from tailrace.web.principal import Action, GrantAuthorizer, Principal
from tailrace.web.tokens import TokenVerifier
from tests.support.gateway import settings_of
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.serving import Client, Serving, serving
from tests.support.tokens import SECRET, claims, forge, jwk_of, private_key, public_pem, sign, token
from tests.support.wait import eventually

API = "/api/v1"
RUN = f"{API}/streams/run:1"
LAST_CHUNK = b"\r\n0\r\n\r\n"


# -- what a token names is neither fetched nor opened ------------------------------------------------------


async def verifier(**settings: Any) -> TokenVerifier:
    return await asyncio.to_thread(lambda: TokenVerifier(settings_of(**settings)))


_heard: list[tuple[str, str]] = []
_hearing = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _hearing and event in ("open", "os.listdir", "socket.connect", "socket.getaddrinfo", "urllib.Request"):
        _heard.append((event, str(arguments)))


sys.addaudithook(_hear)  # there is no way to take it out again; it is deaf but in the test below


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "http://127.0.0.1:9/keys"},
        {"x5u": "http://127.0.0.1:9/chain"},
        {"jku": "file:///etc/passwd", "x5u": "file:///etc/passwd"},
        {"kid": "../../../../etc/passwd"},
        {"kid": "http://127.0.0.1:9/"},
        {"kid": "' UNION SELECT 'key' --"},
        {"kid": "| cat /etc/passwd"},
        {"kid": "x" * 10_000},
        {"kid": ["k"]},
        {"crit": ["jku"], "jku": "http://127.0.0.1:9/keys"},
        {"jwk": {"kty": "oct", "k": "c2VjcmV0"}},
    ],
)
async def test_nothing_that_a_header_names_is_opened_or_connected_to(header: dict[str, Any], tmp_path: Path) -> None:
    global _hearing
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [jwk_of("p256", "k")]}))
    checks = [await verifier(), await verifier(jwt_jwks_file=keys)]
    hostile = [
        forge({"alg": "HS256", **header}, claims(), b"not the secret"),
        sign(claims(), private_key("p256-other"), "ES256", **{**header, "kid": "k"}),
    ]
    for check in checks:  # the key file was read once, and may be looked at again
        with pytest.raises(Unauthorized):
            await check.verify(forge({"alg": "ES256"}, claims()))

    _heard.clear()
    _hearing = True
    try:
        for check in checks:
            for each in hostile:
                with pytest.raises(Unauthorized):
                    await check.verify(each)
    finally:
        _hearing = False

    assert [each for each in _heard if str(keys) not in each[1]] == []


@pytest.mark.parametrize("kind", ["rsa", "p256", "ed25519"])
async def test_ssh_form_of_a_public_key_is_never_taken_for_a_secret(kind: str, tmp_path: Path) -> None:
    ssh = private_key(kind).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem(kind))
    check = await verifier(jwt_key_file=pem)

    for secret in (ssh, ssh + b"\n", ssh + b" me@host", ssh.split()[1]):
        for algorithm in ("HS256", "HS384", "HS512"):
            with pytest.raises(Unauthorized):
                await check.verify(forge({"alg": algorithm}, claims(), secret))


@pytest.mark.parametrize("secret", ["x" * 31, "short", "é" * 15])
def test_weak_secret_does_not_start(secret: str) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        settings_of(jwt_secret=secret)


@pytest.mark.parametrize("kind", ["rsa", "p256", "ed25519"])
def test_key_that_others_know_does_not_start_as_a_secret(kind: str) -> None:
    ssh = private_key(kind).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    jwk = json.dumps(jwk_of(kind, "k"))
    for secret in (ssh, f" {ssh} me@host", jwk, f'{{"keys": [{jwk}]}}', public_pem(kind).decode()):
        with pytest.raises(ConfigError, match="jwt_secret"):
            TokenVerifier(settings_of(jwt_secret=secret))


@pytest.mark.parametrize("algorithms", ["HS256,RS256", "RS256,HS256", "HS256,EdDSA", "HS512,ES256"])
def test_mixed_algorithms_do_not_start(algorithms: str, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem("rsa"))
    for key in ({"jwt_secret": SECRET}, {"jwt_key_file": pem}):
        with pytest.raises(ValueError, match="mixes"):
            settings_of(**key, jwt_algorithms=algorithms)


# -- an open connection ends -------------------------------------------------------------------------------


class Fickle(GrantAuthorizer):
    """Takes every permission to read away when told."""

    denying = False

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """See `Authorizer`."""
        return not self.denying and await super().authorize(principal, action, stream)


class Clock:
    """Unix time that a test moves."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Open:
    """A served application whose clock and permissions a test moves."""

    def __init__(self, served: Serving, gateway: Gateway, clock: Clock, authorizer: Fickle) -> None:
        self.served = served
        self.gateway = gateway
        self.clock = clock
        self.authorizer = authorizer

    async def end(self, cause: str) -> None:
        if cause == "expiry":
            self.clock.ahead = 4_000
        elif cause == "revocation":
            await self.gateway.access.revocations.revoke(sub="alice")
        elif cause == "revoked token":
            await self.gateway.access.revocations.revoke(token_id="a1")
        else:
            self.authorizer.denying = True


@asynccontextmanager
async def opened() -> AsyncIterator[Open]:
    given = settings_of(recheck_seconds=0.05, jwt_leeway_seconds=0)
    log, clock, authorizer = MemoryLog(kinds=given.stream_kinds()), Clock(), Fickle()
    app = create_app(given, log=log, authorizer=authorizer)
    gateway: Gateway = app.state.gateway
    gateway.access._clock = clock
    async with serving(app, drain=lambda: gateway.drain(0)) as served:
        yield Open(served, gateway, clock, authorizer)
    await log.aclose()


ALICE = token("alice", read=["run:*"], jti="a1")
BEARER = {"Authorization": f"Bearer {ALICE}"}


async def by_sse(it: Open, ready: Callable[[], Awaitable[None]]) -> int:
    async with it.served.client() as client:
        await client.get(f"{RUN}/events/stream", f"Authorization: Bearer {ALICE}", "Accept: text/event-stream")
        await client.until(b"event: stream.open", 30)
        await ready()
        await client.until(b"event: stream.closed\ndata: ", 30)
        code = json.loads((await client.until(b"\n\n", 30)).strip())["code"]
        await client.until(LAST_CHUNK, 30)
        return int(code)


async def by_socket(path: str, it: Open, ready: Callable[[], Awaitable[None]]) -> int:
    async with connect(f"ws://127.0.0.1:{it.served.port}{path}", additional_headers=BEARER, compression=None) as socket:
        assert "open" in str(await socket.recv())
        await ready()
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionClosed) as closed:
                await _read_all(socket)
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


async def _read_all(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def by_one(it: Open, ready: Callable[[], Awaitable[None]]) -> int:
    return await by_socket(f"{RUN}/ws", it, ready)


async def by_many(it: Open, ready: Callable[[], Awaitable[None]]) -> int:
    return await by_socket(f"{API}/ws", it, ready)


async def by_poll(it: Open, ready: Callable[[], Awaitable[None]]) -> int:
    (last,) = await it.gateway.log.append(StreamName.parse("run:1"), [Event("n")])
    address = f"{it.served.url}{API}/events/poll?stream=run:1&cursor={last.id}&timeout=30"
    async with httpx.AsyncClient(timeout=40, trust_env=False, verify=False) as http:
        asking = asyncio.create_task(http.get(address, headers=BEARER))
        await eventually(lambda: len(it.gateway.connections) == 1, 30)
        await ready()
        answer = await asking
        assert answer.json()["closed"], answer.text
        return int(answer.json()["closed"]["code"])


WAYS = {"sse": by_sse, "websocket of one": by_one, "websocket of many": by_many, "poll": by_poll}
CAUSES = {
    "expiry": CloseCode.TOKEN_EXPIRED,
    "revocation": CloseCode.UNAUTHORIZED,
    "revoked token": CloseCode.UNAUTHORIZED,
    "lost permission": CloseCode.FORBIDDEN,
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("way", WAYS)
async def test_open_connection_ends_with_its_code(way: str, cause: str) -> None:
    if (way, cause) == ("websocket of many", "lost permission"):
        pytest.skip("ends the one stream: tests/transports/ws/test_multiplexed.py")
    async with opened() as it:
        assert await WAYS[way](it, lambda: it.end(cause)) == CAUSES[cause]
        await eventually(lambda: len(it.gateway.connections) == 0, 30)


# -- neither kind of token stands in for the other ---------------------------------------------------------


async def test_each_kind_of_token_is_good_in_its_own_place_only() -> None:
    async with opened() as it, httpx.AsyncClient(base_url=it.served.url, trust_env=False, verify=False) as http:
        short = (await http.post(f"{API}/auth/sse-token", headers=BEARER)).json()["sse_token"]
        for path in (f"{RUN}/events/stream", f"{API}/events/stream?stream=run:1", f"{API}/events/poll?timeout=0"):
            glue = "&" if "?" in path else "?"
            for wrong in (f"{path}{glue}sse_token={ALICE}", f"{path}{glue}token={ALICE}", f"{path}{glue}jwt={ALICE}"):
                assert (await http.get(wrong)).status_code == 401
            as_bearer = await http.get(path, headers={"Authorization": f"Bearer {short}"})
            assert as_bearer.status_code == 401
        for path in (f"{RUN}/ws", f"{API}/ws"):
            for query, offered in ((f"?sse_token={ALICE}", {}), ("", {"Authorization": f"Bearer {short}"})):
                with pytest.raises(InvalidStatus) as refused:
                    async with connect(f"ws://127.0.0.1:{it.served.port}{path}{query}", additional_headers=offered):
                        pass
                assert refused.value.response.status_code == 401
        # None of this has used the short token up.
        assert (await http.get(f"{API}/events/poll?timeout=0&sse_token={short}")).status_code == 200


@pytest.mark.parametrize("sub", ["*", "alice*", "user:*", "alice:bob", "../bob", "{bob}", "bob\n", "bob\x00"])
async def test_wildcards_in_a_subject_open_nothing(sub: str) -> None:
    async with opened() as it, httpx.AsyncClient(base_url=it.served.url, trust_env=False, verify=False) as http:
        headers = {"Authorization": f"Bearer {token(sub)}"}
        for stream in ("user:bob", "user:alice", "run:1"):
            assert (await http.get(f"{API}/streams/{stream}/events", headers=headers)).status_code == 403


# -- replay ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def gateways(server: RedisServer, prefix: str, count: int) -> AsyncIterator[list[Serving]]:
    """Several on one Redis."""
    made: list[Serving] = []
    if count == 0:
        yield made
        return
    given = settings_of(redis_url=server.url, key_prefix=prefix, recheck_seconds=0.1, max_connections_per_user=0)
    async with serving(create_app(given)) as served, gateways(server, prefix, count - 1) as others:
        yield [served, *others]


@pytest.mark.timeout(120)
async def test_short_token_replayed_a_hundred_times_at_once_serves_one_connection(
    redis70: RedisServer, key_prefix: str
) -> None:
    async with gateways(redis70, key_prefix, 2) as two:
        async with httpx.AsyncClient(trust_env=False, verify=False) as http:
            minted = await http.post(f"{two[0].url}{API}/auth/sse-token", headers=BEARER)
        path = f"{RUN}/events/stream?sse_token={minted.json()['sse_token']}"
        clients = [await Client.open(two[number % 2].port) for number in range(100)]
        try:
            await asyncio.gather(*(client.get(path, "Accept: text/event-stream") for client in clients))
            ended: set[int] = set()

            async def follow(number: int) -> None:
                while LAST_CHUNK not in clients[number].received:
                    if not await clients[number].more():
                        # Told that Redis does not answer now, as it may be with so many at once: it comes again.
                        assert b"event: stream.refused" in clients[number].received
                        clients[number].close()
                        clients[number] = await Client.open(two[number % 2].port)
                        await clients[number].get(path, "Accept: text/event-stream")
                ended.add(number)

            tasks = [asyncio.create_task(follow(number)) for number in range(100)]
            await eventually(lambda: len(ended) == 99, 90)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for client in clients:
                client.close()

    (kept,) = set(range(100)) - ended
    assert b"event: stream.open" in clients[kept].received
    assert b"stream.closed" not in clients[kept].received


async def test_short_token_proves_nothing_while_redis_is_away(start_redis: StartRedis) -> None:
    server = await start_redis()
    async with (
        gateways(server, "t:", 1) as (one,),
        httpx.AsyncClient(base_url=one.url, timeout=30, trust_env=False, verify=False) as http,
    ):
        short = (await http.post(f"{API}/auth/sse-token", headers=BEARER)).json()["sse_token"]
        await server.kill()
        poll = await http.get(f"{API}/events/poll?timeout=0&sse_token={short}")
        mint = await http.post(f"{API}/auth/sse-token", headers=BEARER)
        revoke = await http.post(f"{API}/auth/revoke", headers=BEARER)
        await server.start()

        async def back() -> bool:
            return (await http.get(f"{API}/events/poll?timeout=0&sse_token={short}")).status_code == 200

        await eventually(back, 30)

    assert [each.status_code for each in (poll, mint, revoke)] == [503, 503, 503]
