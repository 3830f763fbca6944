"""A gateway's whole session with secrets everywhere: none is in a log line, an answer, a metric, a repr or in Redis."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailrace.app import create_app
from tailrace.config import Settings
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.endpoint import Address
from tailrace.observe import configure_logging
from tailrace.web.gateway import Gateway
from tailrace.web.principal import Action, GrantAuthorizer, Principal
from tests.security.routes import wheres
from tests.support.gateway import settings_of
from tests.support.redis_servers import StartRedis
from tests.support.serving import Serving, serving
from tests.support.tokens import token
from tests.support.ws_raw import handshake

SECRET = "canary-secret-of-these-tests-of-32-bytes"
PASSWORD = "canary-password-of-redis"
SHORT = "st1_" + "canary" + "A" * 37
COOKIE = "canary-cookie.canary.canary"


def signed(sub: str, **more: Any) -> str:
    import jwt as pyjwt

    made = pyjwt.decode(token(sub, **more), options={"verify_signature": False})
    return pyjwt.encode({**made, "pad": "canary" * 5}, SECRET, algorithm="HS256")


ROOT, ALICE = signed("root", admin=True), signed("alice", read=["run:*"])


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that is logged, as it would be written; afterwards logging is as before."""
    names = ["", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "httpx", "httpcore"]
    before = [
        (logger, logger.handlers[:], logger.level, logger.filters[:], logger.propagate)
        for logger in map(logging.getLogger, names)
    ]
    out = io.StringIO()
    configure_logging(settings_of(log_level="debug"), out)
    yield out
    for logger, handlers, level, filters, propagate in before:
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        logger.setLevel(level)


class Broken(GrantAuthorizer):
    """Decides, but for one stream, which it meets with a defect that holds a secret."""

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """See `Authorizer`."""
        if stream == "run:broken":
            raise RuntimeError(f"no access with {ROOT} at redis://:{PASSWORD}@127.0.0.1/0?sse_token={SHORT}")
        return await super().authorize(principal, action, stream)


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[tuple[Serving, Gateway, Any]]:
    app = create_app(settings, authorizer=Broken())
    async with serving(app) as served:
        yield served, app.state.gateway, app


def secrets_of(short: str) -> list[str]:
    # Of a token each part is secret but the header, which is the same for all.
    return ["canary", short.removeprefix("st1_"), *ROOT.split(".")[1:], *ALICE.split(".")[1:]]


async def ask_everything(
    served: Serving, app: Any, short: str, *streams: str, without: Sequence[str] = ()
) -> list[str]:
    """Every route with every proof, good and bad, also in wrong places; the answers."""
    texts: list[str] = []
    proofs: list[tuple[dict[str, str], str]] = [
        ({"Authorization": f"Bearer {ROOT}"}, ""),
        ({"Authorization": f"Bearer {ALICE}"}, ""),
        ({"Authorization": f"Bearer {ROOT}x"}, ""),
        ({"Authorization": f"Basic {ROOT}"}, ""),
        ({"Authorization": f"Bearer {ROOT}"}, f"sse_token={SHORT}"),
        ({}, f"sse_token={SHORT}"),
        ({}, f"sse_token={short}"),
        ({}, f"token={ROOT}&access_token={ROOT}"),
        ({"Cookie": f"session={ROOT}; other={COOKIE}"}, ""),
        ({"Cookie": f"session={COOKIE}", "Origin": "https://evil.example"}, ""),
    ]
    async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False, verify=False) as http:
        for where in wheres(app):
            if where.method == "WS" or where.path.startswith(("/streams", "/events", "/runs", *without)):
                continue
            for stream in filter(where.takes, streams):
                path = where.at(stream)
                for headers, query in proofs:
                    url = f"{path}?{query}&stream={stream}&timeout=0"
                    async with http.stream(where.method, url, headers=headers, content=b"{") as answer:
                        texts.append(str(answer.headers))
                        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                            texts.append((await answer.aread()).decode())
        texts.append((await http.get("/metrics")).text)
    return texts


async def shake_hands(served: Serving, short: str) -> list[str]:
    """WebSockets with tokens in each place."""
    texts: list[str] = []
    for path in ("/api/v1/ws", "/api/v1/streams/run:1/ws", "/api/v1/runs/1/ws", "/api/v1/runs/broken/ws", "/nothing"):
        for query, line in (
            (f"?sse_token={short}", "X: y"),
            (f"?sse_token={SHORT}", "Origin: https://evil.example"),
            (f"?token={ROOT}", "X: y"),
            ("", f"Authorization: Bearer {ALICE}"),
            ("", f"Sec-WebSocket-Protocol: tailrace.v1, tailrace.bearer.{ALICE}"),
            ("", f"Sec-WebSocket-Protocol: tailrace.bearer.{ROOT}x"),
        ):
            async with served.client() as client:
                await client.send(handshake(path + query, line))
                texts.append((await client.until(b"\r\n\r\n", 60)).decode())
    return texts


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_no_secret_is_anywhere_but_with_its_owner(
    start_redis: StartRedis, logged: io.StringIO, tmp_path: Path
) -> None:
    server = await start_redis()
    await server.cli("ACL", "SETUSER", "default", "resetpass", f">{PASSWORD}")
    url = f"unix://:{PASSWORD}@{server.socket}"
    settings = settings_of(
        redis_url=url,
        key_prefix="t:",
        log_timeout_seconds=0.2,
        jwt_secret=SECRET,
        cookie_name="session",
        max_connections_per_user=0,
        runs_enabled=True,
        data_dir=tmp_path,
    )
    async with serve(settings) as (served, gateway, app):
        async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False, verify=False) as http:
            minted = await http.post("/api/v1/auth/sse-token", headers={"Authorization": f"Bearer {ALICE}"})
            short = minted.json()["sse_token"]
        texts = await ask_everything(served, app, short, "run:1", "run:broken", "BAD")
        texts += await shake_hands(served, short)
        texts.append(str(await server.cli("CLIENT", "LIST")))
        keys = await server.cli("KEYS", "*")
        texts += [str(keys), repr(settings), str(settings), repr(Address.parse(url)), repr(gateway.log), repr(gateway)]
        texts += [repr(gateway.log.topology), repr(vars(gateway.access))]  # type: ignore[attr-defined]
        await server.kill()
        away = await ask_everything(served, app, short, "run:1", without=["/api/v1/runs"])
        texts += away
        await server.start()

    assert len(texts) > 500
    assert any("LOG_UNAVAILABLE" in text for text in away)
    assert [text for text in away if str(server.socket) in text] == [], "where Redis is, is nobody's business"
    assert logged.getvalue().count("a request met a defect") > 10
    for secret in secrets_of(short):
        assert [text for text in texts if secret in text] == [], secret
        assert [line for line in logged.getvalue().splitlines() if secret in line] == [], secret


def test_error_of_a_wrong_setting_shows_no_value() -> None:
    for wrong in ({"jwt_secret": "canary"}, {"redis_url": f"redis://:{PASSWORD}@x/0", "port": -1}):
        with pytest.raises(ValueError, match=r"jwt_secret|port") as caught:
            settings_of(**wrong)
        assert "canary" not in str(caught.value)
