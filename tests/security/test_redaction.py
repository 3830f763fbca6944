"""A token is in no log line, whoever writes it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tailrace.app import create_app
from tailrace.eventlog.memory import MemoryLog
from tailrace.observe import RedactingFilter, configure_logging, redact, redact_servers
from tests.support.gateway import settings_of
from tests.support.serving import serving
from tests.support.tokens import token

JWT = token("canary")
SHORT = "st1_" + "canary" + "A" * 37


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    names = ["", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "httpx", "httpcore"]
    before = {
        name: (logger.handlers[:], logger.level, logger.filters[:], logger.propagate)
        for name in names
        for logger in [logging.getLogger(name)]
    }
    yield
    for name, (handlers, level, filters, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        logger.setLevel(level)
    assert root.level == before[""][1]


@pytest.mark.parametrize(
    "text",
    [
        f"GET /api/v1/events/stream?stream=run:1&sse_token={SHORT}&x=1 HTTP/1.1",
        f"GET /x?access_token={JWT}",
        f"/x?token={JWT}",
        f"WebSocket /ws?SSE_TOKEN={SHORT}",
        f"Authorization: Bearer {JWT}",
        f"authorization: bearer {JWT}",
        f"{{'authorization': 'Bearer {JWT}'}}",
        f'{{"authorization": "Bearer {JWT}"}}',
        f"headers=[(b'authorization', b'Bearer {JWT}')]",
        f"Sec-WebSocket-Protocol: tailrace.v1, tailrace.bearer.{JWT}",
        f"Cookie: session={JWT}; theme=dark",
        f"a bare {JWT} in a sentence",
        f"a bare {SHORT}",
        "redis://:canary-password@127.0.0.1:6379/0",
        "postgresql://user:canary-p%40ss@db/x",
        "password=canary&x=1",
    ],
)
def test_secret_is_hidden_and_the_rest_stays(text: str) -> None:
    cleaned = redact(f"before {text}\nafter")

    assert "canary" not in cleaned
    assert JWT.split(".")[1] not in cleaned
    assert cleaned.startswith("before ")
    assert cleaned.endswith("\nafter")


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/v1/streams/run:1/events?limit=10 HTTP/1.1",
        "stream=user:alice code=FORBIDDEN",
        "http://127.0.0.1:8080/docs",
        "the token has expired",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("style", ["json", "console"])
def test_every_line_is_cleaned_also_in_tracebacks_and_extras(style: str) -> None:
    out = io.StringIO()
    configure_logging(settings_of(log_format=style), out)

    try:
        raise ValueError(f"bad url http://x/?sse_token={SHORT}")
    except ValueError:
        logging.getLogger("tailrace.test").exception("it failed", extra={"url": f"/x?sse_token={SHORT}", "n": 7})
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "1.2.3.4", f"/ws?sse_token={SHORT}")

    text = out.getvalue()
    assert "canary" not in text
    assert "it failed" in text
    assert "ValueError" in text
    if style == "json":
        first, second = (json.loads(line) for line in text.splitlines())
        assert (first["event"], first["n"], first["level"], first["logger"]) == (
            "it failed",
            7,
            "error",
            "tailrace.test",
        )
        assert second["event"].startswith("1.2.3.4")


def test_log_level_and_format_follow_the_settings() -> None:
    out = io.StringIO()
    configure_logging(settings_of(log_level="warning"), out)

    logging.getLogger("tailrace.test").info("quiet")
    logging.getLogger("tailrace.test").warning("loud")

    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["event"] == "loud"


def test_handlers_of_others_get_cleaned_records_of_uvicorn() -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.getLogger("uvicorn.access")
    logger.addHandler(Keep())
    logger.setLevel(logging.INFO)
    redact_servers()
    redact_servers()

    logger.info('%s - "%s %s HTTP/%s" %d', "1.2.3.4", "GET", f"/x?sse_token={SHORT}", "1.1", 200)

    assert "canary" not in records[0].getMessage()
    assert records[0].getMessage().endswith("200")
    assert sum(isinstance(each, RedactingFilter) for each in logger.filters) == 1


async def test_no_token_is_logged_by_the_whole_application() -> None:
    out = io.StringIO()
    settings = settings_of(log_level="debug")
    configure_logging(settings, out)
    app = create_app(settings, log=MemoryLog())
    paths = [
        "/api/v1/events/stream?stream=BAD&sse_token={}",
        "/ws?sse_token={}",
        "/nothing?token={}",
        "/healthz?sse_token={}",
    ]
    async with serving(app) as served, httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        for path in paths:
            for secret in (SHORT, JWT):
                headers: dict[str, Any] = {"Authorization": f"Bearer {JWT}x"}
                await client.get(path.format(secret))
                await client.get(path.format(secret), headers=headers)
                await client.get(path.format(secret), headers={"Upgrade": "websocket", "Connection": "upgrade"})
                metrics = (await client.get("/metrics")).text

    for text in (out.getvalue(), metrics):
        assert "canary" not in text
        assert JWT.split(".")[1] not in text
