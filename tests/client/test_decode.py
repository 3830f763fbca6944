"""What comes from a server: problems to errors, JSON to items, tokens to their expiry; nonsense to nothing worse."""

from __future__ import annotations

import contextlib
import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace import errors
from tailrace.client.credentials import Credentials, expiry_of
from tailrace.client.problems import error_of
from tailrace.client.wire import PageAnswer, decode_control, decode_page, decode_record, encode_events
from tailrace.codes import CloseCode
from tailrace.core.codec import decode_events, encode, prepare
from tailrace.core.event import Degraded, Ended, Event, Gap, GapReason, Json, Record, StreamState
from tailrace.core.frames import closed_payload, control_payload, envelope, open_payload
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import CorruptRecord

RUN = StreamName.parse("run:1")
ID, PREV = EntryId(5, 2), EntryId(4, 1)


def test_every_code_becomes_its_error() -> None:
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.TailraceError) and not issubclass(cls, errors.UsageError):
            body = json.dumps({"code": cls.code, "detail": "why", "limit": 7, "retry_after": 3}).encode()
            error = error_of(cls.status, {}, body)
            assert error.code == cls.code
            assert str(error) == "why"
            assert error.data["limit"] == 7
            assert getattr(error, "retry_after", 3) == 3


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, b"<html>", errors.LogUnavailable),
        (502, b"", errors.LogUnavailable),
        (522, b"<html>", errors.LogUnavailable),
        (404, b"[]", errors.NotFound),
        (418, b'{"code":"NEW_ONE"}', errors.RequestError),
        (500, b"\xff", errors.TailraceError),
        (429, b"{}", errors.RateLimited),
    ],
)
def test_an_answer_without_a_known_code_goes_by_its_status(status: int, body: bytes, kind: type[Exception]) -> None:
    assert type(error_of(status, {"retry-after": "soon"}, body)) is kind


def test_records_and_control_events_come_back_as_they_were() -> None:
    data = encode({"a": [1, "ä\u2028\u0000"]}, max_bytes=1_000)
    record = Record(RUN, ID, PREV, "note", data, 123, "u", "k", "a", "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    foreign = Record(RUN, ID, None, "note", data, 123)
    gap = Gap(RUN, PREV, ID, None, GapReason.RESET, PREV)

    assert decode_record(envelope(record)) == record
    assert decode_record(envelope(foreign)) == foreign
    assert decode_control(control_payload(gap)) == gap
    for ended in (Ended(RUN, ID, StreamState.CLOSED), Ended(RUN, ID, StreamState.EXPIRED)):
        assert decode_control(control_payload(ended)) == ended
    assert decode_control(control_payload(Degraded(True, 2.0))) == Degraded(True, 2.0)
    opened = decode_control(open_payload({RUN: ID}, {RUN: ID}))
    assert getattr(opened, "cursors", None) == {RUN: ID}
    closed = decode_control(closed_payload(CloseCode.GOING_AWAY, retry_after=1.5, detail="bye"))
    assert (getattr(closed, "code", 0), getattr(closed, "retry_after", 0)) == (4000, 1.5)
    assert decode_control(b'{"control":"from-the-future","x":1}') is None


@given(st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)))
def test_nonsense_from_a_server_is_a_corrupt_record_and_nothing_else(body: bytes) -> None:
    for decode in (decode_record, decode_control, decode_page):
        with contextlib.suppress(CorruptRecord):
            decode(body)


def test_events_are_sent_as_the_server_reads_them() -> None:
    events = [
        Event("a", encode({"x": 1.5, "t": "\n\u0000"}, max_bytes=100), "u~1", "k", "a b"),
        Event("b", encode(None, max_bytes=100)),
    ]

    read = decode_events(encode_events(events), "application/json")

    assert [prepare(event, max_bytes=100) for event in read] == [prepare(event, max_bytes=100) for event in events]


def test_the_expiry_of_a_token_is_read_without_trusting_it() -> None:
    assert expiry_of(jwt.encode({"exp": 1_000}, "k" * 32, algorithm="HS256")) == 1_000.0
    for token in (None, "", "a.b", "a.b.c", "a.!!.c", "a.bnVsbA.c", "a.W10.c"):
        assert expiry_of(token) is None


async def test_a_token_is_renewed_before_it_expires_and_once_for_all_who_wait() -> None:
    import asyncio

    now, asked = 1_000.0, 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return jwt.encode({"exp": now + 60, "n": asked}, "k" * 32, algorithm="HS256")

    credentials = Credentials(token, clock=lambda: now)
    first = await asyncio.gather(*(credentials.headers() for _ in range(5)))
    now += 30
    same = await credentials.headers()
    now += 25
    other = await credentials.headers()

    assert asked == 2
    assert first == [first[0]] * 5
    assert same == first[0] != other


async def test_a_token_function_that_answers_nothing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(errors.ConfigError):
        await Credentials(lambda: "").headers()


def test_a_page_gives_every_gap_that_stands_before_one_record() -> None:
    record = Record(RUN, ID, PREV, "n", Json(b"1"), 5)
    gaps = tuple(Gap(RUN, PREV, before, None, reason, PREV) for before in (ID, None) for reason in GapReason)

    given = list(PageAnswer((record,), False, None, gaps).items())

    assert [item for item in given if isinstance(item, Gap)] == list(gaps)
