"""Who gets what from every route, over a real server: all routes x all roles x own, other's and nonexistent streams.

The routes are asked of the application: a new one without a line in `RULES` fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import NamedTuple

import httpx
import pytest

from tailrace.app import create_app
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tests.security.routes import PREFIX, Where, wheres
from tests.support.gateway import settings_of
from tests.support.serving import Serving, serving
from tests.support.tokens import token
from tests.support.ws_raw import handshake


class Rule(Enum):
    """What a route asks for."""

    PUBLIC = "nothing"
    KNOWN = "a good token"
    OTHERS = "an admin: it ends somebody else's tokens"
    READ, WRITE, CLOSE, DELETE = "read", "write", "close", "delete"


RULES = {
    ("GET", "/openapi.json"): Rule.PUBLIC,
    ("HEAD", "/openapi.json"): Rule.PUBLIC,
    ("GET", "/healthz"): Rule.PUBLIC,
    ("GET", "/readyz"): Rule.PUBLIC,
    ("GET", "/metrics"): Rule.PUBLIC,
    ("GET", "/events/health"): Rule.PUBLIC,
    ("GET", "/events/stream"): Rule.READ,
    ("HEAD", "/events/stream"): Rule.READ,
    ("GET", "/streams/{stream}/events/stream"): Rule.READ,
    ("HEAD", "/streams/{stream}/events/stream"): Rule.READ,
    ("GET", "/events/history"): Rule.READ,
    ("GET", "/events/poll"): Rule.READ,
    ("GET", "/streams/{stream}/events"): Rule.READ,
    ("GET", "/streams/{stream}"): Rule.READ,
    ("WS", "/streams/{stream}/ws"): Rule.READ,
    ("WS", "/ws"): Rule.KNOWN,
    ("POST", "/streams/{stream}/events"): Rule.WRITE,
    ("POST", "/streams/{stream}/close"): Rule.CLOSE,
    ("DELETE", "/streams/{stream}"): Rule.DELETE,
    ("POST", "/auth/sse-token"): Rule.KNOWN,
    ("POST", "/auth/revoke"): Rule.OTHERS,
}
BODIES = {
    ("POST", "/streams/{stream}/events"): {"type": "n"},
    ("POST", "/auth/revoke"): {"jti": "nobody-has-it"},
}
ROLES = {
    "anonymous": None,
    "alice": token("alice"),
    "bob": token("bob"),
    "service": token("service", read=["task:*"], write=["task:*"]),
    "admin": token("root", admin=True),
}
THERE = {"user:alice", "user:bob", "task:1", "run:1"}
STREAMS = [*sorted(THERE), "user:nobody", "task:none", "run:none"]
MAY = {
    "alice": {(Rule.READ, "user:alice")},
    "bob": {(Rule.READ, "user:bob")},
    "service": {(rule, stream) for rule in (Rule.READ, Rule.WRITE, Rule.CLOSE) for stream in ("task:1", "task:none")},
    "admin": {(rule, stream) for rule in Rule for stream in STREAMS},
}


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str


class Site:
    """A served application, and its log."""

    def __init__(self, served: Serving, log: MemoryLog, http: httpx.AsyncClient) -> None:
        self.served = served
        self.log = log
        self.http = http

    async def restore(self, stream: str) -> None:
        """The stream is there, open, with one secret in it; or it is not there."""
        name = StreamName.parse(stream)
        await self.log.delete(name)
        if stream in THERE:
            await self.log.append(name, [Event("secret", "canary")])

    async def ask(self, where: Where, role: str, stream: str) -> Answer:
        """One request of `role` about `stream`; of what does not end the head and the first bytes."""
        path = where.path.replace("{stream}", stream)
        if where.path == path:
            path += f"?stream={stream}&timeout=0"
        auth = {"Authorization": f"Bearer {ROLES[role]}"} if ROLES[role] else {}
        if where.method == "WS":
            return await self._shake(path, auth)
        body = BODIES.get(where.rule)
        async with self.http.stream(where.method, path, headers=auth, json=body) as response:
            headers = dict(response.headers)
            if headers.get("content-type", "").startswith("text/event-stream"):
                return Answer(response.status_code, headers, "")
            return Answer(response.status_code, headers, (await response.aread()).decode())

    async def _shake(self, path: str, auth: dict[str, str]) -> Answer:
        async with self.served.client() as client:
            await client.send(handshake(path, *(f"{name}: {value}" for name, value in auth.items())))
            head = (await client.until(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            status = int(head[0].split()[1])
            text = (await client.until(b"}")).decode() if status != 101 else ""
            return Answer(status, headers, text)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    given = settings_of(max_connections_per_user=0)
    log = MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=log)
    gateway = app.state.gateway
    async with (
        serving(app, drain=lambda: gateway.drain(0)) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False, verify=False) as http,
    ):
        yield Site(served, log, http)
    await log.aclose()


def all_routes() -> list[Where]:
    return list(wheres(create_app(settings_of(), log=MemoryLog())))


def allowed(rule: Rule, role: str, stream: str) -> bool:
    if rule is Rule.PUBLIC:
        return True
    if role == "anonymous":
        return False
    return rule is Rule.KNOWN or (rule, stream) in MAY[role]


def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    assert {where.rule for where in all_routes()} == set(RULES)


@pytest.mark.parametrize("where", all_routes(), ids=lambda where: f"{where.method} {where.path}")
async def test_route_gives_to_whom_it_may_and_refuses_all_others_alike(where: Where) -> None:
    rule = RULES[where.rule]
    refusals: dict[str, set[str]] = {}
    # The same routes at the root run the same functions: one stream of each sort shows that they are guarded too.
    streams = STREAMS if where.path.startswith(PREFIX) else ["user:alice", "user:nobody"]
    async with site() as it:
        for role in ROLES:
            for stream in streams:
                await it.restore(stream)
                answer = await it.ask(where, role, stream)
                said = f"{role} {stream}: {answer.status} {answer.text}"

                if allowed(rule, role, stream):
                    assert answer.status in ((101, 200, 201, 204) if stream in THERE else (101, 200, 201, 204, 404)), (
                        said
                    )
                    continue
                assert answer.status == (401 if role == "anonymous" else 403), said
                assert "canary" not in answer.text
                # The stream's own name apart, nothing may differ: not for another's, not for one that is not there.
                shape = [sorted(answer.headers.items() - {("date", answer.headers.get("date", ""))}), answer.text]
                refusals.setdefault(role, set()).add(json.dumps(shape).replace(stream, "STREAM"))

    for role, seen in refusals.items():
        assert len({_without_length(each) for each in seen}) == 1, (role, seen)


def _without_length(shape: str) -> str:
    headers, text = json.loads(shape)
    return json.dumps([[each for each in headers if each[0] != "content-length"], text])


async def test_refusal_is_the_same_while_the_log_is_away() -> None:
    """Permission is decided before the log is asked: neither an answer nor its time can tell what is there."""
    async with site() as it:
        guarded = [where for where in all_routes() if RULES[where.rule].value in ("read", "write", "close", "delete")]
        before = [(await it.ask(where, "bob", "user:alice"))[::2] for where in guarded]
        await it.log.aclose()
        after = [(await it.ask(where, "bob", "user:alice"))[::2] for where in guarded]

    assert before == after


async def test_prefix_and_root_are_the_same_routes() -> None:
    paths = {where for where in all_routes() if "{stream}" in where.path or "/events" in where.path}
    assert {(each.method, each.path) for each in paths if each.path.startswith(PREFIX)} == {
        (each.method, PREFIX + each.path) for each in paths if not each.path.startswith(PREFIX)
    }
