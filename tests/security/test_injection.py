"""What a user writes stays inside of what it is in: an event, a line, a header; for all that could end it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.codes import CloseCode
from tailrace.core import frames
from tailrace.core.codec import decode_events
from tailrace.core.sse import ServerEvent, SseParser, encode_event
from tailrace.errors import Malformed, RequestError
from tests.security.routes import all_routes
from tests.support.tokens import token
from tests.support.ws import Gate, gate
from tests.support.ws_raw import handshake

ROOT = token("root", admin=True)
AUTH = f"Authorization: Bearer {ROOT}"
BEARER = {"Authorization": f"Bearer {ROOT}"}
RUN = "/api/v1/streams/run:1"
ENDERS = [
    *map(chr, range(0x21)),
    *map(chr, range(0x7F, 0xA1)),
    *("\u2028", "\u2029", "\ufeff", "\ufffe", "\ufffd", "\u200b", "\u202e", "\U0010ffff", "\r\n", "\n\n", "\r\r"),
    *("\n\nevent: evil\ndata: evil\n\n", "\r\rid: 9-9\r\r", "\nretry: 1\n", ": comment", "data:", "id:\x00", "\x1b[2J"),
]
hostile = st.lists(st.sampled_from(ENDERS) | st.text(max_size=5), max_size=6).map("".join)


@pytest.fixture
async def running(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Gate]:
    """A gateway to which nothing that a client sends is an error of its own."""
    async with gate(max_connections_per_user=0) as made:
        yield made
        assert [each for each in caplog.records if each.levelname == "ERROR" and each.name != "uvicorn.error"] == []


def http(running: Gate) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.server.url, headers=BEARER, timeout=30, trust_env=False, verify=False)


async def test_every_character_comes_through_every_transport_as_it_was(running: Gate) -> None:
    datas: list[Any] = [*ENDERS, *({each: [each, {each: each}]} for each in ENDERS), "".join(ENDERS)]
    async with http(running) as client:
        stored = await client.post(f"{RUN}/events", json=[{"type": "n", "data": data} for data in datas])
        assert stored.status_code == 201, stored.text
        ids = [each["id"] for each in stored.json()["events"]]
        page = (await client.get(f"{RUN}/events?limit=1000")).json()["events"]
        poll = (await client.get("/api/v1/events/poll?stream=run:1&cursor=0&timeout=0")).json()["events"]
    events: list[ServerEvent] = []
    parser = SseParser()
    async with running.server.client() as client_, running.wire("/streams/run:1/ws?last_id=0") as wire:
        await client_.get(f"{RUN}/events/stream?last_id=0", AUTH, version="1.0")
        await client_.until(b"\r\n\r\n", 30)
        while len(events) < len(datas) + 1:
            await client_.more()
            found = parser.feed(bytes(client_.received))
            client_.received.clear()
            events += [each for each in found if isinstance(each, ServerEvent)]
        messages = await wire.records(len(datas), 30)

    assert [each["data"] for each in page] == datas
    assert [each["data"] for each in poll] == datas
    assert [each["data"] for each in messages] == datas
    assert events[0].event == "stream.open"
    assert [(each.event, each.id, json.loads(each.data)["data"]) for each in events[1:]] == [
        ("n", id_, data) for id_, data in zip(ids, datas, strict=True)
    ]
    assert parser.retry_ms != 1


@given(hostile, hostile, hostile)
def test_one_event_is_one_event_or_is_refused(data: str, event: str, id_: str) -> None:
    try:
        raw = encode_event(data, event=event, id=id_)
    except Malformed:
        assert set(event + id_) & set("\r\n\0")
        return

    (found,) = SseParser().feed(raw)
    assert isinstance(found, ServerEvent)
    assert (found.event, found.id) == (event or "message", id_)
    assert found.data == data.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("field", ["type", "uid", "key", "actor", "trace"])
@given(text=hostile)
def test_label_holds_no_character_that_could_end_a_line(field: str, text: str) -> None:
    body = json.dumps({"type": "n", field: text}).encode()
    try:
        (made,) = decode_events(body, "application/json")
    except RequestError:
        return

    value = getattr(made, field)
    assert value is None or (value.isascii() and value.isprintable())


@given(hostile)
def test_control_events_are_one_line(detail: str) -> None:

    found = SseParser().feed(frames.sse_refused(CloseCode.LIMITED, retry_after=1.0, detail=detail))

    (refused,) = (each for each in found if isinstance(each, ServerEvent))
    assert refused.event == "stream.refused"
    assert json.loads(refused.data)["code"] == CloseCode.LIMITED


# -- headers -----------------------------------------------------------------------------------------------

BREAKS = [
    "%0d%0aX-Evil:%20yes",
    "%0aX-Evil:%20yes",
    "%0dX-Evil:%20yes",
    "%00X-Evil",
    "%E5%98%8A%E5%98%8DX-Evil:%20yes",
    "%u000aX-Evil",
]


async def test_line_breaks_in_a_path_or_a_query_end_no_header(tmp_path: Path) -> None:
    places = {where.path: where for where in await asyncio.to_thread(all_routes)}
    async with (
        gate(max_connections_per_user=0, runs_enabled=True, data_dir=tmp_path) as running,
        running.server.client() as client,
    ):
        for where in places.values():
            for text in BREAKS:
                for target in (where.at(f"run:{text}"), f"{where.at('run:1')}?stream={text}&{text}"):
                    await client.get(target, AUTH, f"Origin: http://{text}", "Connection: keep-alive", method="OPTIONS")
                    head = await client.until(b"\r\n\r\n", 30)
                    assert b"x-evil" not in head.lower(), target
                    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                    while len(client.received) < length:
                        assert await client.more()
                    client.received.clear()


@pytest.mark.parametrize(
    "line",
    [b"X-A: b\rX-Evil: yes", b"X-A: b\nX-Evil: yes", b"X-A: b\0c", b"X\0: b", b" folded: yes", b"X-A : b", b": b"],
)
async def test_broken_header_is_refused_or_harmless(running: Gate, line: bytes) -> None:
    async with running.server.client() as client:
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: test\r\n" + line + b"\r\nConnection: close\r\n\r\n")
        answer = await client.rest(30)

    assert answer == b"" or answer.split(b" ")[1] in (b"200", b"400")
    assert b"evil" not in answer.lower()


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Content-Length: +5"],
        ["Content-Length: 0x5"],
        ["Transfer-Encoding:\x0bchunked"],
    ],
)
async def test_request_of_two_lengths_smuggles_nothing(running: Gate, lines: list[str]) -> None:
    """Two readings of one request's length would let a part of it be taken for the next request of somebody else."""
    inner = f"POST {RUN}/events HTTP/1.1\r\nHost: test\r\n{AUTH}\r\nContent-Type: application/json\r\n"
    async with running.server.client() as client:
        head = "\r\n".join([f"POST {RUN}/close HTTP/1.1", "Host: test", *lines, "", ""])
        await client.send(f'{head}0\r\n\r\n{inner}Content-Length: 12\r\n\r\n{{"type":"n"}}'.encode())
        answer = await client.until(b"\r\n", 30)
    async with http(running) as client_:
        stored = (await client_.get(f"{RUN}/events")).json()["events"]

    assert answer.split(b" ")[1] in (b"400", b"401")
    assert stored == []


@pytest.mark.parametrize(
    "target", [b"/api/v1/ws?x=\xff", b"/api/v1/\xff/ws", b"/api/v1/ws?\xe2\x80\xa8", b"/%ff/ws", b"/api/v1/ws?x=%ff%00"]
)
async def test_bytes_that_are_no_text_in_a_handshake_are_no_defect(
    running: Gate, target: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running.server.client() as client:
        await client.send(handshake("/TARGET", AUTH).replace(b"/TARGET", target))
        answer = await client.until(b"\r\n", 30)

    assert answer.split(b" ")[1] in (b"101", b"400", b"401", b"403", b"404")
    assert "Traceback" not in caplog.text
