"""Whatever a request holds, the answer is a documented one: never a defect, never a line that was not ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailrace.app import create_app
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import settings_of
from tests.support.tokens import token

ALLOWED = {200, 201, 204, 400, 401, 403, 404, 405, 409, 413, 415}
AUTH = f"Bearer {token('root', admin=True)}".encode()

hostile = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"\0", b"\r\nid: 1", b"0", b"$", b"-1", b"1-1", b"c1.", b"c1.AAAA", b"*", b"run:42", b"\xff"]
    ),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
names = st.sampled_from(
    [
        "stream", "limit", "order", "types", "start_id", "end_id", "since_id", "cursor", "timeout", "format",
        "named", "conflate", "connection", "last_event_id", "last_id", "sse_token", "degraded", "x",
    ]
)  # fmt: skip
queries = st.lists(st.tuples(names, hostile), max_size=5)
paths = st.sampled_from(
    [
        "/events/history",
        "/events/poll",
        "/streams/{}/events",
        "/streams/{}",
        "/streams/{}/close",
        "/auth/revoke",
        "/readyz",
        "/{}",
    ]
)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"last-event-id", b"idempotency-key", b"accept", b"origin", b"content-type", b"host", b"traceparent",
             b"x-forwarded-for", b"if-none-match", b"content-length", b"cookie", b"access-control-request-method"]
        ),
        hostile,
    ),
    max_size=4,
)  # fmt: skip
methods = st.sampled_from(["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "BREW"])


async def ask(app: Any, scope: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await app(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"], b"".join(each.get("body", b"") for each in sent[1:])


@pytest.fixture(scope="module")
def service() -> Iterator[Callable[[dict[str, Any], bytes], tuple[int, list[tuple[bytes, bytes]], bytes]]]:
    """One application for all examples, in a loop of its own."""
    given = settings_of(max_poll_seconds=0.01, cookie_name="c", trusted_proxies=("1.1.1.1",))
    with asyncio.Runner() as runner:
        app = runner.run(make(given))
        running = app.state.gateway.running()
        runner.run(running.__aenter__())
        yield lambda scope, body: runner.run(ask(app, scope, body))
        runner.run(running.__aexit__(None, None, None))


async def make(given: Any) -> Any:
    return create_app(given, log=MemoryLog())


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    method=methods,
    path=paths,
    part=hostile,
    query=queries,
    extra=headers,
    known=st.booleans(),
    body=st.binary(max_size=60),
)
def test_every_request_has_a_documented_answer(
    service: Any,
    method: str,
    path: str,
    part: bytes,
    query: list[tuple[str, bytes]],
    extra: list[tuple[bytes, bytes]],
    known: bool,
    body: bytes,
) -> None:
    raw = "&".join(f"{name}={quote_from_bytes(value)}" for name, value in query)
    filled = path.format(part.decode("latin-1"))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": filled,
        "raw_path": filled.encode("latin-1"),
        "root_path": "",
        "query_string": raw.encode(),
        "headers": [*([(b"authorization", AUTH)] if known else []), *extra],
        "client": ("1.1.1.1", 1),
        "server": ("test", 80),
    }

    status, answered, content = service(scope, body)

    assert status in ALLOWED, (status, content)
    for name, value in answered:
        assert not set(value) & set(b"\r\n\0"), name
    if status >= 400 and method != "HEAD":
        assert json.loads(content)["status"] == status
