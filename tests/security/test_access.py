"""Who may do what, from where; the same for every place a token can be in."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from tailrace.core.names import StreamName
from tailrace.errors import ConfigError
from tailrace.web.principal import Action, Principal
from tests.support.gateway import Api, api
from tests.support.tokens import token

PATH = "/api/v1/streams/run:42/events"
ONE = {"type": "a"}
COOKIE: dict[str, Any] = {"cookie_name": "session"}


def cookie(sub: str = "alice", **more: Any) -> dict[str, str]:
    return {"Cookie": f"session={token(sub, read=['run:*'], write=['run:*'])}", **more}


# -- who may do what ---------------------------------------------------------------------------------------

PEOPLE = {
    "nobody": None,
    "alice": token("alice"),
    "mallory": token("mallory", read=["task:*", "run:43"], write=["user:mallory"]),
    "reader": token("reader", read=["run:*"]),
    "writer": token("writer", write=["run:*"]),
    "admin": token("root", admin=True),
}
CALLS = {
    "publish": ("POST", "/api/v1/streams/{}/events", {"json": ONE}),
    "history": ("GET", "/api/v1/streams/{}/events", {}),
    "merged": ("GET", "/api/v1/events/history?stream={}", {}),
    "info": ("GET", "/api/v1/streams/{}", {}),
    "stream": ("HEAD", "/api/v1/streams/{}/events/stream", {}),
    "streams": ("HEAD", "/api/v1/events/stream?stream={}", {}),
    "poll": ("GET", "/api/v1/events/poll?stream={}&timeout=0", {}),
    "close": ("POST", "/api/v1/streams/{}/close", {}),
    "delete": ("DELETE", "/api/v1/streams/{}", {}),
}
READS = {"history", "merged", "info", "stream", "streams", "poll"}
ALLOWED: dict[tuple[str, str], set[str]] = {
    ("alice", "user:alice"): READS,
    ("alice", "system:all"): READS,
    ("mallory", "user:mallory"): {*READS, "publish", "close"},
    ("mallory", "system:all"): READS,
    ("reader", "run:42"): READS,
    ("reader", "user:reader"): READS,
    ("reader", "system:all"): READS,
    ("writer", "run:42"): {"publish", "close"},
    ("writer", "user:writer"): READS,
    ("writer", "system:all"): READS,
}
STREAMS = ["run:42", "user:alice", "user:mallory", "system:all", "run:never", "probe:x"]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("person", PEOPLE)
async def test_only_what_is_granted_is_allowed(person: str, stream: str) -> None:
    async with api() as it:
        await it.publish("run:42", ONE)
        await it.publish("user:alice", ONE)
        answers = {
            name: await it.call(method, path.format(stream), auth=PEOPLE[person], **more)
            for name, (method, path, more) in CALLS.items()
        }

    for name, answer in answers.items():
        if person == "nobody":
            assert answer.status_code == 401, name
            assert answer.headers["www-authenticate"].startswith("Bearer")
        elif person == "admin" or name in ALLOWED.get((person, stream.replace("never", "42")), ()):
            assert answer.status_code in (200, 201, 204, 404), (name, answer.text)
        else:
            assert answer.status_code == 403, (name, answer.text)


async def test_refusal_does_not_tell_whether_the_stream_exists() -> None:
    async with api() as it:
        await it.publish("run:42", ONE)
        there = await it.call("GET", "/api/v1/streams/run:42", auth=token("alice"))
        not_there = await it.call("GET", "/api/v1/streams/run:43", auth=token("alice"))

    assert there.status_code == not_there.status_code == 403
    assert there.text.replace("42", "43") == not_there.text
    assert set(there.headers) == set(not_there.headers)


async def test_subject_is_escaped_and_cannot_name_another_users_stream() -> None:
    async with api() as it:
        await it.publish("user:auth0~7C1", {"type": "mine"})
        mine = await it.call("GET", "/api/v1/events/history", auth=token("auth0|1"))
        other = await it.call("GET", "/api/v1/streams/user:auth0~7C1/events", auth=token("auth0~7C1"))

    assert [each["type"] for each in mine.json()["events"]] == ["mine"]
    assert other.status_code == 403


async def test_one_forbidden_stream_forbids_the_whole_request() -> None:
    async with api() as it:
        answer = await it.call("GET", "/api/v1/events/history?stream=run:1&stream=task:1", auth=token(read=["run:*"]))

    assert answer.status_code == 403


async def test_own_authorizer_decides_everything() -> None:
    asked: list[tuple[str, Action, StreamName]] = []

    class Own:
        async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
            asked.append((principal.sub, action, stream))
            return stream == "run:42"

    async with api(create={"authorizer": Own()}) as it:
        good = await it.call("POST", PATH, json=ONE, auth=token("alice"))
        bad = await it.call("GET", "/api/v1/streams/user:alice/events", auth=token("alice", admin=True))

    assert (good.status_code, bad.status_code) == (201, 403)
    assert asked == [("alice", Action.WRITE, "run:42"), ("alice", Action.READ, "user:alice")]


async def test_own_authentication_needs_no_token() -> None:
    async def who(connection: HTTPConnection) -> Principal | None:
        name = connection.headers.get("x-user")
        return Principal(sub=name) if name else None

    async with api(create={"authenticate": who}) as it:
        known = await it.call("GET", "/api/v1/events/history", auth=None, headers={"X-User": "alice"})
        unknown = await it.call("GET", "/api/v1/events/history", auth=None)
        by_token = await it.call("GET", "/api/v1/events/history", auth=token("bob"))

    assert (known.status_code, unknown.status_code, by_token.status_code) == (200, 401, 200)


async def test_gateway_without_any_way_to_know_who_asks_does_not_start() -> None:
    with pytest.raises(ConfigError):
        async with api(jwt_secret=None):
            pass


# -- where a token may be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Token {token(read=['run:*'])}"},
        {"Authorization": f"Bearer {token(read=['run:*'])}x"},
        {"Authorization": f"Bearer {token(read=['run:*'])} {token()}"},
        {"Cookie": f"session={token(read=['run:*'])}"},
        {"X-Api-Key": token(read=["run:*"])},
    ],
)
async def test_what_is_no_good_proof_is_a_401(headers: dict[str, str]) -> None:
    async with api() as it:
        answer = await it.call("GET", PATH, auth=None, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize("name", ["sse_token", "access_token", "token", "jwt"])
@pytest.mark.parametrize("path", [PATH, "/api/v1/events/history", "/api/v1/events/poll?timeout=0"])
async def test_jwt_is_never_taken_from_the_address(name: str, path: str) -> None:
    good = token("root", admin=True)
    async with api() as it:
        answer = await it.call("GET", f"{path}{'&' if '?' in path else '?'}{name}={good}", auth=None)

    assert answer.status_code == 401
    assert good not in answer.text


async def test_two_proofs_are_refused() -> None:
    async with api() as it:
        both = [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token('bob')}")]
        twice = await it.call("GET", PATH, auth=None, headers=both)
        short = await it.call("GET", "/api/v1/events/poll?timeout=0&sse_token=st1_x")
        shorts = await it.call("GET", "/api/v1/events/poll?timeout=0&sse_token=a&sse_token=b", auth=None)

    assert [each.status_code for each in (twice, short, shorts)] == [400, 400, 400]


# -- cookies and origins -----------------------------------------------------------------------------------


async def test_cookie_is_accepted_from_our_own_pages_only() -> None:
    own = {"Origin": "http://test", "Sec-Fetch-Site": "same-origin"}
    async with api(**COOKIE) as it:
        read = await it.call("GET", PATH, auth=None, headers=cookie())
        write = await it.call("POST", PATH, auth=None, headers=cookie(**own), json=ONE)

    assert (read.status_code, write.status_code) == (200, 201)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://test"},
        {"Origin": "http://test:81"},
        {"Origin": "http://test.evil.example"},
        {"Origin": "http://eviltest"},
        {"Origin": "http://test@evil.example"},
        {"Origin": "http://test", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://test", "Sec-Fetch-Site": "same-site"},
        {"Origin": "https://app.example"},
    ],
)
async def test_cookie_of_a_foreign_page_writes_nothing(headers: dict[str, str]) -> None:
    async with api(cors_origins=("https://app.example",), **COOKIE) as it:
        for method, path in (("POST", PATH), ("DELETE", "/api/v1/streams/run:42"), ("POST", "/api/v1/auth/sse-token")):
            answer = await it.call(method, path, auth=None, headers=cookie(**headers), json=ONE)
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
        page = await it.call("GET", PATH)

    assert page.json()["events"] == []


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_cookie_of_a_foreign_page_reads_nothing(headers: dict[str, str]) -> None:
    async with api(**COOKIE) as it:
        answer = await it.call("GET", PATH, auth=None, headers=cookie(**headers))

    assert answer.status_code == 403


async def test_header_token_is_not_bound_to_an_origin() -> None:
    async with api(**COOKIE) as it:
        answer = await it.call("POST", PATH, json=ONE, headers={"Origin": "https://evil.example"})

    assert answer.status_code == 201


async def test_scheme_of_a_trusted_proxy_counts_for_the_origin() -> None:
    headers = cookie(**{"Origin": "https://test", "X-Forwarded-Proto": "https"})
    async with api(trusted_proxies=("127.0.0.1",), **COOKIE) as it:
        trusted = await it.call("POST", PATH, auth=None, headers=headers, json=ONE)
    async with api(**COOKIE) as it:
        untrusted = await it.call("POST", PATH, auth=None, headers=headers, json=ONE)

    assert (trusted.status_code, untrusted.status_code) == (201, 403)


async def test_listed_origin_may_call_and_is_named_exactly() -> None:
    async with api(cors_origins=("https://app.example",)) as it:
        headers = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,last-event-id",
        }
        preflight = await it.call("OPTIONS", PATH, auth=None, headers=headers)
        answer = await it.call("GET", PATH, headers={"Origin": "https://app.example"})
        error = await it.call("GET", PATH, auth=None, headers={"Origin": "https://app.example"})

    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert "last-event-id" in preflight.headers["access-control-allow-headers"].lower()
    for each in (preflight, answer, error):
        assert each.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in each.headers
        assert "origin" in each.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "https://app.example.evil.example",
        "http://app.example",
        "https://app.example:444",
        "*",
        "https://app.example/",
        "https://sub.app.example",
    ],
)
@pytest.mark.parametrize("origins", [(), ("https://app.example",)])
async def test_other_origins_are_never_allowed_nor_reflected(origin: str, origins: tuple[str, ...]) -> None:
    async with api(cors_origins=origins) as it:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = await it.call("OPTIONS", PATH, auth=None, headers=headers)
        answer = await it.call("GET", PATH, headers={"Origin": origin})

    assert preflight.status_code == 403
    for each in (preflight, answer):
        assert "access-control-allow-origin" not in each.headers
        assert not origins or "origin" in each.headers["vary"].lower()


async def test_only_listed_hosts_are_served() -> None:
    async with api(allowed_hosts=("api.example", "*.apps.example")) as it:
        answers = [
            (await it.call("GET", "/healthz", auth=None, headers={"Host": host})).status_code
            for host in (
                "api.example",
                "api.example:8080",
                "a.apps.example",
                "evil.example",
                "apps.example",
                "127.0.0.1",
            )
        ]

    assert answers == [200, 200, 200, 400, 400, 400]


# -- what every answer carries -----------------------------------------------------------------------------


async def test_every_answer_has_security_headers() -> None:
    async with api() as it:
        answers = [
            await it.call("GET", "/healthz", auth=None),
            await it.call("GET", PATH),
            await it.call("GET", PATH, auth=None),
            await it.call("GET", "/nothing", auth=None),
            await it.call("PATCH", PATH),
        ]

    assert [each.status_code for each in answers] == [200, 200, 401, 404, 405]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    for answer in answers[2:]:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code


async def test_defect_is_a_500_without_detail(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
            raise RuntimeError("secret canary")

    async with api(create={"authorizer": Broken()}) as it:
        answer = await it.call("GET", PATH)
        as_stream = await it.call("GET", f"{PATH}/stream", headers={"Accept": "text/event-stream"})

    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
    assert "canary" not in answer.text
    assert as_stream.status_code == 200
    assert "event: stream.refused" in as_stream.text
    assert "canary" not in as_stream.text
    assert sum("defect" in record.message for record in caplog.records) == 2


async def test_problem_shows_the_path_and_never_the_query() -> None:
    async with api() as it:
        answer = await it.call("GET", f"{PATH}?limit=0&sse_token=canary", auth=token("root", admin=True))

    assert answer.json()["instance"] == "/api/v1/streams/run:42/events"
    assert "canary" not in answer.text


# -- revocation --------------------------------------------------------------------------------------------


async def revoke(it: Api, auth: str, body: Any = None) -> int:
    more = {"json": body} if body is not None else {}
    return (await it.call("POST", "/api/v1/auth/revoke", auth=auth, **more)).status_code


async def test_logging_out_ends_the_callers_tokens_and_nobody_elses() -> None:
    mine, other = token("alice", jti="a1"), token("bob")
    async with api() as it:
        assert await revoke(it, mine) == 204
        refused = await it.call("GET", "/api/v1/events/history", auth=mine)
        fresh = await it.call("GET", "/api/v1/events/history", auth=token("alice", iat=int(time.time()) + 5))
        others = await it.call("GET", "/api/v1/events/history", auth=other)

    assert (refused.status_code, fresh.status_code, others.status_code) == (401, 200, 200)


async def test_only_an_admin_revokes_the_tokens_of_others() -> None:
    async with api() as it:
        assert await revoke(it, token("alice"), {"sub": "bob"}) == 403
        assert await revoke(it, token("alice"), {"jti": "b1"}) == 403
        assert await revoke(it, token("alice"), {"nonsense": 1}) == 400
        assert await revoke(it, token("root", admin=True), {"jti": "b1"}) == 204
        one = await it.call("GET", "/api/v1/events/history", auth=token("bob", jti="b1"))
        two = await it.call("GET", "/api/v1/events/history", auth=token("bob", jti="b2"))

    assert (one.status_code, two.status_code) == (401, 200)
