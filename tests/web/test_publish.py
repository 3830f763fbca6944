from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tailrace.errors import LogUnavailable, OutcomeUnknown
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import api
from tests.support.tokens import token

PATH = "/api/v1/streams/run:42/events"
ONE = {"type": "node_output", "data": {"text": "hello"}}


async def test_one_event_is_published_and_answered_with_its_id() -> None:
    async with api() as it:
        answer = await it.call("POST", PATH, json=ONE)
        page = (await it.call("GET", PATH)).json()

    assert answer.status_code == 201
    (event,) = answer.json()["events"]
    assert event == {"id": event["id"], "stream": "run:42", "duplicate": False}
    assert [(each["id"], each["prev"], each["type"], each["data"]) for each in page["events"]] == [
        (event["id"], "0-0", "node_output", {"text": "hello"})
    ]


async def test_array_and_lines_are_stored_in_their_order() -> None:
    lines = "\n".join(json.dumps({"type": "line", "data": number}) for number in range(3, 6))
    async with api() as it:
        await it.publish("run:42", *[{"type": "line", "data": number} for number in range(3)])
        answer = await it.call("POST", PATH, content=lines, headers={"Content-Type": "application/x-ndjson"})
        page = (await it.call("GET", PATH)).json()

    assert answer.status_code == 201
    assert [each["data"] for each in page["events"]] == [0, 1, 2, 3, 4, 5]
    assert all(b["prev"] == a["id"] for a, b in zip(page["events"], page["events"][1:], strict=False))


async def test_root_has_the_same_routes_as_the_prefix() -> None:
    async with api() as it:
        assert (await it.call("POST", "/streams/run:42/events", json=ONE)).status_code == 201
        assert len((await it.call("GET", PATH)).json()["events"]) == 1


async def test_idempotency_key_stores_once_and_answers_the_same_id() -> None:
    headers = {"Idempotency-Key": "order-7"}
    async with api() as it:
        first = (await it.call("POST", PATH, json=[ONE, ONE], headers=headers)).json()["events"]
        again = (await it.call("POST", PATH, json=[ONE, ONE], headers=headers)).json()["events"]
        other = await it.call("POST", PATH, json=[ONE, {"type": "other"}], headers=headers)
        page = (await it.call("GET", PATH)).json()

    assert [each["id"] for each in first] == [each["id"] for each in again]
    assert [each["duplicate"] for each in again] == [True, True]
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert len(page["events"]) == 2


async def test_traceparent_of_the_request_is_carried_and_a_bad_one_is_ignored() -> None:
    good = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with api() as it:
        await it.call("POST", PATH, json=ONE, headers={"traceparent": good})
        await it.call("POST", PATH, json=ONE, headers={"traceparent": "nonsense"})
        page = (await it.call("GET", PATH)).json()

    assert [each.get("trace") for each in page["events"]] == [good, None]


BAD_BODIES: list[tuple[Any, int, str]] = [
    (b"", 400, "MALFORMED"),
    (b"{", 400, "MALFORMED"),
    (b"[]", 400, "MALFORMED"),
    (b"null", 400, "MALFORMED"),
    (b'{"type":"a","data":NaN}', 400, "MALFORMED"),
    (b'{"type":"a","data":1e999}', 400, "MALFORMED"),
    (b'{"type":"a","data":"\xff"}', 400, "MALFORMED"),
    (b'{"type":"a","data":"\x00"}', 400, "MALFORMED"),
    (b'{"type":"a\\u0000"}', 400, "MALFORMED"),
    (b'{"type":"a\\r\\nid: 1"}', 400, "MALFORMED"),
    (b'{"type":"stream.gap"}', 400, "MALFORMED"),
    (b'{"type":"error"}', 400, "MALFORMED"),
    (b'{"type":"a","uid":"x\\n"}', 400, "MALFORMED"),
    (b'{"type":"a","unknown":1}', 400, "MALFORMED"),
    (b'{"data":1}', 400, "MALFORMED"),
    (b'{"type":7}', 400, "MALFORMED"),
    (b'[{"type":"a"},{"type":"b c"}]', 400, "MALFORMED"),
    (b'{"type":"a","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "MALFORMED"),
    (b'{"type":"a","data":"' + b"x" * 1_048_575 + b'"}', 413, "TOO_LARGE"),
    (b"[" + b",".join([b'{"type":"a"}'] * 1_001) + b"]", 413, "TOO_LARGE"),
    (b" " * 8_388_609, 413, "TOO_LARGE"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES, ids=[str(body[:30]) for body, _, _ in BAD_BODIES])
async def test_bad_body_is_a_problem_and_stores_nothing(body: bytes, status: int, code: str) -> None:
    async with api() as it:
        answer = await it.call("POST", PATH, content=body, headers={"Content-Type": "application/json"})
        page = (await it.call("GET", PATH)).json()

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert page["events"] == []


async def test_largest_allowed_event_passes() -> None:
    data = "x" * (1_048_576 - 2)
    async with api() as it:
        assert await it.publish("run:42", {"type": "a", "data": data})
        page = (await it.call("GET", PATH)).json()

    assert page["events"][0]["data"] == data


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"]
)
async def test_other_content_types_are_refused(kind: str) -> None:
    async with api() as it:
        answer = await it.call("POST", PATH, content=b'{"type":"a"}', headers={"Content-Type": kind})

    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb", "é"])
async def test_bad_idempotency_key_is_refused(key: str) -> None:
    async with api() as it:
        answer = await it.call("POST", PATH, json=ONE, headers=[(b"Idempotency-Key", key.encode("latin-1"))])
        both = await it.call("POST", PATH, json={**ONE, "uid": "u"}, headers={"Idempotency-Key": "k"})
        twice = await it.call("POST", PATH, json=ONE, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])

    assert [each.status_code for each in (answer, both, twice)] == [400, 400, 400]


HOSTILE = [
    "run",
    "run:",
    ":42",
    "Run:42",
    "run:*",
    "run:%3F",
    "run:[a]",
    "run:{42}",
    "run:..%2F",
    "run:.",
    "run:a%0d%0aX: 1",
    "run:a%00",
    "run:" + "x" * 201,
    "x" * 300,
    "rún:42",
    "run:\uff14\uff12",
    "run:a%20b",
    "run%3A..",
    "run:a\\b",
    "run:a;b",
    "run:%ff",
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_stream_name_is_refused_everywhere(name: str) -> None:
    async with api() as it:
        answers = [
            await it.call("POST", f"/api/v1/streams/{name}/events", json=ONE),
            await it.call("GET", f"/api/v1/streams/{name}/events"),
            await it.call("GET", f"/api/v1/streams/{name}"),
            await it.call("DELETE", f"/api/v1/streams/{name}"),
            await it.call("POST", f"/api/v1/streams/{name}/close"),
            await it.call("GET", f"/api/v1/streams/{name}/events/stream"),
            await it.call("GET", f"/api/v1/events/stream?stream={name}"),
            await it.call("GET", f"/api/v1/events/history?stream={name}"),
        ]

    for answer in answers:
        assert answer.status_code in (400, 404), answer.request.url
        assert answer.json()["code"] in ("INVALID_STREAM", "NOT_FOUND", "METHOD_NOT_ALLOWED")
        assert "\n" not in answer.json()["instance"]


class Refusing(MemoryLog):
    """A log that answers appends with an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def append(self, stream: Any, events: Any, **more: Any) -> Any:
        if stream.kind == "probe":
            return await super().append(stream, events, **more)
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LogUnavailable("the log does not answer", retry_after=2.5), "LOG_UNAVAILABLE"),
        (OutcomeUnknown("no answer came", receipt=object()), "OUTCOME_UNKNOWN"),
    ],
)
async def test_log_that_is_away_is_a_503_that_says_when_to_come_back(error: Exception, code: str) -> None:
    async with api(log=Refusing(error)) as it:
        answer = await it.call("POST", PATH, json=ONE)

    assert (answer.status_code, answer.json()["code"]) == (503, code)
    assert int(answer.headers["retry-after"]) >= 1
    assert "receipt" not in answer.text


async def test_body_that_does_not_end_in_time_is_a_408() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"type":'
        await asyncio.Event().wait()

    async with api(body_timeout_seconds=0.05) as it:
        answer = await it.call("POST", PATH, content=slow(), headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (408, "REQUEST_TIMEOUT")


async def test_too_large_body_is_refused_before_it_is_read() -> None:
    read: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(1)
            yield b" " * 65_536

    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    async with api(max_batch_bytes=200_000) as it:
        answer = await it.call("POST", PATH, content=endless(), headers=headers)

    assert answer.status_code == 413
    assert len(read) < 10


async def test_write_grant_is_needed_and_is_enough() -> None:
    async with api() as it:
        allowed = [
            await it.call("POST", PATH, json=ONE, auth=token(write=pattern)) for pattern in (["run:42"], ["run:*"])
        ]
        refused = [
            await it.call("POST", PATH, json=ONE, auth=token(write=pattern, read=["run:*"]))
            for pattern in ([], ["run:43"], ["task:*"], ["run:4"])
        ]

    assert [each.status_code for each in allowed] == [201, 201]
    assert [(each.status_code, each.json()["code"]) for each in refused] == [(403, "FORBIDDEN")] * 4


async def test_closed_stream_takes_nothing_more() -> None:
    async with api() as it:
        await it.publish("run:42", ONE)
        closed = await it.call("POST", "/api/v1/streams/run:42/close")
        twice = await it.call("POST", "/api/v1/streams/run:42/close")
        refused = await it.call("POST", PATH, json=ONE)
        missing = await it.call("POST", "/api/v1/streams/run:43/close")

    assert (closed.status_code, closed.json()["state"]) == (200, "closed")
    assert twice.json() == closed.json()
    assert (refused.status_code, refused.json()["code"]) == (409, "STREAM_CLOSED")
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_FOUND")


async def test_info_and_delete() -> None:
    async with api() as it:
        first, last = await it.publish("run:42", ONE, ONE)
        info = (await it.call("GET", "/api/v1/streams/run:42")).json()
        deleted = await it.call("DELETE", "/api/v1/streams/run:42")
        again = await it.call("DELETE", "/api/v1/streams/run:42")
        after = (await it.call("GET", f"{PATH}?since_id={first}")).json()
        missing = await it.call("GET", "/api/v1/streams/run:43")
        by_writer = await it.call("DELETE", "/api/v1/streams/run:42", auth=token(write=["run:*"]))

    assert (info["length"], info["first_id"], info["last_id"], info["state"]) == (2, first, last, "open")
    assert (deleted.status_code, again.status_code, missing.status_code) == (204, 404, 404)
    assert (after["events"], after["gap"]["reason"], after["state"]) == ([], "deleted", "deleted")
    assert by_writer.status_code == 403
