"""Whatever a token is, it is refused with 401 or proves exactly what it says; nothing it names is fetched or opened."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tailrace.config import Settings
from tailrace.errors import ConfigError, Unauthorized
from tailrace.web.keys import REFETCH_SECONDS, KeySetUrl, KeysUnavailable, create_key_source
from tailrace.web.tokens import REMEMBERED_SECONDS, TokenVerifier
from tests.support.tokens import SECRET, claims, forge, forge_raw, jwk_of, private_key, private_pem, public_pem, sign

NOW = 1_800_000_000.0


def make(clock: Callable[[], float] = time.time, **settings: Any) -> TokenVerifier:
    if not {"jwt_secret", "jwt_key_file", "jwt_jwks_file"} & set(settings):
        settings["jwt_secret"] = SECRET
    return TokenVerifier(Settings(**settings), clock=clock)


async def verifier(clock: Callable[[], float] = time.time, **settings: Any) -> TokenVerifier:
    return await asyncio.to_thread(lambda: make(clock, **settings))


async def refused(token: str, **settings: Any) -> str:
    with pytest.raises(Unauthorized) as caught:
        await (await verifier(**settings)).verify(token)
    return str(caught.value.data.get("reason"))


# -- algorithms and keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["none", "NONE", "None", "nOnE", "", None, 5, ["HS256"], "HS256 ", "hs256"])
async def test_no_algorithm_is_no_token(algorithm: object) -> None:
    await refused(forge({"alg": algorithm, "typ": "JWT"}, claims()))
    await refused(forge({"alg": algorithm, "typ": "JWT"}, claims(), SECRET.encode()))


async def test_missing_algorithm_is_refused() -> None:
    await refused(forge({"typ": "JWT"}, claims(), SECRET.encode()))


@pytest.mark.parametrize("kind", ["rsa", "p256", "ed25519"])
async def test_public_key_is_never_taken_for_a_secret(kind: str, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem(kind))
    for secret in (public_pem(kind), public_pem(kind).strip(), json.dumps(jwk_of(kind, "k")).encode()):
        for algorithm in ("HS256", "HS384", "HS512"):
            assert await refused(forge({"alg": algorithm}, claims(), secret), jwt_key_file=pem) == "key"


async def test_public_key_set_is_never_taken_for_a_secret(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [jwk_of("rsa", "k"), {"kty": "oct", "kid": "h", "k": "c2VjcmV0" * 8}]}))
    await refused(forge({"alg": "HS256", "kid": "k"}, claims(), keys.read_bytes()), jwt_jwks_file=keys)
    await refused(forge({"alg": "HS256", "kid": "h"}, claims(), b"secret" * 8), jwt_jwks_file=keys)


async def test_other_hmac_algorithm_needs_to_be_accepted() -> None:
    assert await refused(sign(claims(), algorithm="HS512", key=SECRET * 2), jwt_secret=SECRET * 2) == "key"
    assert (await make(jwt_secret=SECRET * 2, jwt_algorithms="HS512").verify(sign(claims(), SECRET * 2, "HS512"))).sub


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("rsa", "RS256"), ("rsa", "PS512"), ("p256", "ES256"), ("p384", "ES384"), ("ed25519", "EdDSA")],
)
async def test_key_file_accepts_its_own_algorithms_and_key_only(kind: str, algorithm: str, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem(kind))
    check = await verifier(jwt_key_file=pem)

    assert (await check.verify(sign(claims(), private_key(kind), algorithm))).sub == "alice"
    with pytest.raises(Unauthorized):
        await check.verify(sign(claims(), private_key(f"{kind}-other"), algorithm))


@pytest.mark.parametrize("bad", ["rsa1024", "private", "garbage", "missing"])
def test_unusable_key_file_is_refused_at_start(bad: str, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    if bad != "missing":
        pem.write_bytes({"rsa1024": public_pem("rsa1024"), "private": private_pem("rsa")}.get(bad, b"-----BEGIN"))
    with pytest.raises(ConfigError):
        make(jwt_key_file=pem)


def test_algorithm_that_the_key_cannot_do_is_refused_at_start(tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem("p256"))
    with pytest.raises(ConfigError):
        make(jwt_key_file=pem, jwt_algorithms="ES256,RS256")


def test_pem_as_secret_is_refused_at_start() -> None:
    with pytest.raises(ConfigError):
        make(jwt_secret=public_pem("p256").decode())


def test_without_any_key_nothing_starts() -> None:
    with pytest.raises(ConfigError):
        TokenVerifier(Settings())


# -- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"b64": False},
        {"kid": ["a"]},
        {"kid": 7},
        {"kid": ""},
        {"kid": "x" * 10_000},
        {"typ": "at+jwt+evil"},
        {"typ": "dpop+jwt"},
        {"typ": ["JWT"]},
    ],
)
async def test_header_that_is_not_understood_is_refused(header: dict[str, Any]) -> None:
    await refused(forge({"alg": "HS256", **header}, claims(), SECRET.encode()))


@pytest.mark.parametrize("kid", ["../../etc/passwd", "'; DROP TABLE keys; --", "k\u0000", "/dev/zero", "k|id"])
async def test_key_id_opens_nothing(kid: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [jwk_of("p256", "k")]}))
    await refused(sign(claims(), private_key("p256"), "ES256", kid=kid), jwt_jwks_file=keys)


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c"])
async def test_key_that_comes_with_the_token_is_not_looked_at(name: str, tmp_path: Path) -> None:
    value: Any = {"jwk": jwk_of("p256-other", "k"), "x5c": ["MIIB"]}.get(name, "http://127.0.0.1:9/keys")
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem("p256"))

    await refused(sign(claims(), private_key("p256-other"), "ES256", **{name: value}), jwt_key_file=pem)
    good = sign(claims(), private_key("p256"), "ES256", **{name: value})
    assert (await (await verifier(jwt_key_file=pem)).verify(good)).sub == "alice"


# -- claims ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "claims"),
        ({"exp": 1}, "expired"),
        ({"exp": -1}, "claims"),
        ({"exp": "1999999999"}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": [1999999999]}, "claims"),
        ({"exp": 10**18}, "claims"),
        ({"exp": 1e308}, "claims"),
        ({"nbf": 10**10}, "early"),
        ({"nbf": "soon"}, "claims"),
        ({"iat": 10**10}, "early"),
        ({"iat": "now"}, "claims"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": 5}, "claims"),
        ({"sub": ["alice"]}, "claims"),
        ({"sub": "x" * 201}, "claims"),
        ({"sub": "\ud800"}, "claims"),
        ({"jti": 5}, "claims"),
        ({"tailrace": "admin"}, "None"),
        ({"tailrace": {"admin": "true"}}, "None"),
        ({"tailrace": {"admin": 1}}, "None"),
        ({"tailrace": {"read": "run:*"}}, "None"),
        ({"tailrace": {"read": ["*"]}}, "None"),
        ({"tailrace": {"read": ["*:*"]}}, "None"),
        ({"tailrace": {"read": ["run:a*"]}}, "None"),
        ({"tailrace": {"write": ["run:*\n"]}}, "None"),
        ({"tailrace": {"write": [5]}}, "None"),
        ({"tailrace": {"read": ["run:1"] * 257}}, "None"),
    ],
)
async def test_claim_that_is_not_as_it_should_be_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert await refused(forge({"alg": "HS256"}, claims(**changes), SECRET.encode())) == reason


@pytest.mark.parametrize("body", ["[]", "5", "null", '"alice"', "{", "\xff", "[" * 5_000])
async def test_payload_that_is_no_object_is_refused(body: str) -> None:
    await refused(forge_raw(b'{"alg":"HS256"}', body.encode("latin-1"), SECRET.encode()))


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({"iss": "us", "aud": "tailrace"}, True),
        ({"iss": "us", "aud": ["x", "tailrace"]}, True),
        ({"iss": "us"}, False),
        ({"iss": "us", "aud": "tailrace2"}, False),
        ({"iss": "us", "aud": []}, False),
        ({"iss": "us", "aud": {"tailrace": 1}}, False),
        ({"aud": "tailrace"}, False),
        ({"iss": "u", "aud": "tailrace"}, False),
        ({"iss": "us2", "aud": "tailrace"}, False),
        ({"iss": ["us"], "aud": "tailrace"}, False),
    ],
)
async def test_issuer_and_audience_are_compared_as_a_whole(changes: dict[str, Any], good: bool) -> None:
    check = make(jwt_issuer="us", jwt_audience="tailrace")
    token = forge({"alg": "HS256"}, claims(**changes), SECRET.encode())
    if good:
        assert (await check.verify(token)).sub == "alice"
    else:
        with pytest.raises(Unauthorized):
            await check.verify(token)


async def test_leeway_is_what_the_settings_say_and_no_more() -> None:
    check = make(jwt_leeway_seconds=30, clock=lambda: NOW)

    assert (await check.verify(sign(claims(exp=int(NOW) - 29, iat=None)))).sub == "alice"
    with pytest.raises(Unauthorized):
        await check.verify(sign(claims(exp=int(NOW) - 30, iat=None)))
    assert (await check.verify(sign(claims(exp=int(NOW) + 60, iat=None, nbf=int(NOW) + 30)))).sub == "alice"
    with pytest.raises(Unauthorized):
        await check.verify(sign(claims(exp=int(NOW) + 60, iat=None, nbf=int(NOW) + 31)))


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b", "a.b.c.d", "a.b.c\n", " a.b.c", "é.b.c", "a" * 9_000, "e30.e30.e30", "\x00.a.b", "a.b."],
)
async def test_what_is_no_token_is_refused(token: str) -> None:
    await refused(token)


# -- key sets ----------------------------------------------------------------------------------------------


async def test_key_set_chooses_by_key_id_and_is_read_again_when_it_changed(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [jwk_of("p256", "one"), jwk_of("rsa", "two", use="enc")]}))
    ahead = [0.0]
    check = await verifier(lambda: time.time() + ahead[0], jwt_jwks_file=keys)
    old = sign(claims(), private_key("p256"), "ES256", kid="one")
    new = sign(claims(), private_key("ed25519"), "EdDSA", kid="three")

    assert (await check.verify(old)).sub == "alice"
    assert (await check.verify(sign(claims(), private_key("p256"), "ES256"))).sub == "alice"
    for bad in (new, sign(claims(), private_key("rsa"), "RS256", kid="two")):
        with pytest.raises(Unauthorized):
            await check.verify(bad)

    keys.write_text(json.dumps({"keys": [jwk_of("ed25519", "three")]}))

    assert (await check.verify(new)).sub == "alice"
    ahead[0] += REMEMBERED_SECONDS
    with pytest.raises(Unauthorized):
        await check.verify(old)


async def test_remembered_token_still_ends_when_it_expires() -> None:
    now = [NOW]
    check = make(clock=lambda: now[0], jwt_leeway_seconds=0)
    short = sign(claims(exp=int(NOW) + 10, iat=None))

    assert (await check.verify(short)).sub == "alice"
    now[0] += 10
    with pytest.raises(Unauthorized):
        await check.verify(short)


@pytest.mark.parametrize("text", ["{}", "[]", '{"keys": 5}', "x", json.dumps({"keys": [{}] * 65})])
def test_file_that_is_no_key_set_is_refused_at_start(text: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(text)
    with pytest.raises(ConfigError):
        create_key_source(Settings(jwt_jwks_file=keys))


class Issuer:
    """A server of key sets that counts."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [jwk_of("p256", "one")]
        self.asked = 0
        self.status = 200
        self.padding = 0
        self.location = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        headers = [(b"location", self.location.encode())] if self.location else []
        body = json.dumps({"keys": self.keys, "padding": "x" * self.padding}).encode()
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def issuing(issuer: Issuer) -> AsyncIterator[str]:
    import socket

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(issuer, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/keys"
    finally:
        server.should_exit = True
        await task


async def test_key_set_is_fetched_once_and_an_unknown_key_id_asks_again_rarely() -> None:
    issuer, now = Issuer(), [1_000.0]
    async with issuing(issuer) as url:
        source = KeySetUrl(url, (), 300.0, clock=lambda: now[0])
        for _ in range(5):
            assert (await source.find("ES256", "one")).kid == "one"
        assert issuer.asked == 1

        issuer.keys.append(jwk_of("ed25519", "two"))
        for _ in range(50):
            with pytest.raises(Unauthorized):
                await source.find("EdDSA", "two")
        assert issuer.asked == 1

        now[0] += REFETCH_SECONDS
        assert (await source.find("EdDSA", "two")).kid == "two"
        assert issuer.asked == 2


async def test_known_keys_stay_good_while_their_server_is_away() -> None:
    issuer, now = Issuer(), [1_000.0]
    async with issuing(issuer) as url:
        source = KeySetUrl(url, (), 300.0, clock=lambda: now[0])
        await source.find("ES256", "one")
        issuer.status = 500
        now[0] += 301
        assert (await source.find("ES256", "one")).kid == "one"
        now[0] += 90_000
        with pytest.raises(KeysUnavailable):
            await source.find("ES256", "one")


@pytest.mark.parametrize("trick", ["redirect", "huge", "error"])
async def test_key_set_server_cannot_lead_away_or_flood(trick: str) -> None:
    issuer = Issuer()
    if trick == "redirect":
        issuer.status, issuer.location = 302, "/elsewhere"
    elif trick == "huge":
        issuer.padding = 300_000
    else:
        issuer.status = 503
    async with issuing(issuer) as url:
        source = KeySetUrl(url, (), 300.0)
        with pytest.raises(KeysUnavailable):
            await source.find("ES256", "one")
    assert issuer.asked == 1
