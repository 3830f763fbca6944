"""Wire forms beside the conformance cases."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tailrace.codes import CloseCode
from tailrace.core import frames
from tailrace.core.event import Degraded, Ended, Gap, GapReason, Item, Json, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.sse import ServerEvent, SseParser

RUN, USER = StreamName.parse("run:42"), StreamName.parse("user:u7")
RECORD = Record(RUN, EntryId(5, 2), EntryId(5, 1), "a", Json(b'{"n":1}'), 12)
GAP = Gap(RUN, ZERO, EntryId(5, 2), 1, GapReason.TRIMMED, EntryId(5, 1))


def parse(raw: bytes) -> tuple[SseParser, list[ServerEvent]]:
    parser = SseParser()
    return parser, [item for item in parser.feed(raw) if isinstance(item, ServerEvent)]


json_objects = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(["id", "ID", "a"]),
    st.none()
    | st.integers()
    | st.text(alphabet='{}[],":\\id', max_size=6)
    | st.lists(st.dictionaries(st.just("id"), st.integers())),
    max_size=5,
)


@given(json_objects, st.booleans())
def test_raw_is_the_object_with_the_records_id(value: dict[str, object], ascii_only: bool) -> None:
    data = Json(json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode())
    record = Record(RUN, EntryId(5, 2), EntryId(5, 1), "a", data, 12)

    text = frames.raw(record)

    assert json.loads(text) == {**value, "id": "5-2"}
    assert text.startswith(b'{"id":"5-2"')
    assert json.loads(frames.envelope(record))["data"] == value


def test_open_tells_where_the_reader_is_and_has_its_cursor_as_id() -> None:
    _, [event] = parse(frames.sse_open({RUN: EntryId(5, 1)}, {RUN: EntryId(5, 2)}))

    assert (event.event, event.id) == ("stream.open", "5-1")
    streams = {"run:42": {"cursor": "5-1", "head": "5-2"}}
    assert json.loads(event.data) == {"control": "open", "protocol": 1, "streams": streams}


def test_open_of_several_streams_has_a_token_and_may_not_know_a_head() -> None:
    _, [event] = parse(frames.sse_open({RUN: EntryId(5, 1), USER: ZERO}, {RUN: EntryId(5, 2)}))

    assert event.id.startswith("c1.")
    assert json.loads(event.data)["streams"]["user:u7"] == {"cursor": "0-0", "head": None}


def test_refused_and_closed_say_why_and_move_no_cursor() -> None:
    raw = frames.sse_item(GAP) + frames.sse_refused(CloseCode.LIMITED, retry_after=2.5, detail="a\nb")
    parser, events = parse(raw + frames.sse_closed(CloseCode.GOING_AWAY))

    assert [event.event for event in events] == ["stream.gap", "stream.refused", "stream.closed"]
    refused = {"control": "refused", "code": 4004, "reason": "LIMITED", "retry_after": 2.5, "detail": "a\nb"}
    assert json.loads(events[1].data) == refused
    assert json.loads(events[2].data) == {"control": "closed", "code": 4000, "reason": "GOING_AWAY"}
    assert parser.last_event_id == "5-1"


def test_retry_is_a_line_that_dispatches_nothing() -> None:
    parser, events = parse(frames.retry(1.5) + frames.sse_closed(CloseCode.SLOW) + frames.retry(-1.0))

    assert [event.event for event in events] == ["stream.closed"]
    assert parser.retry_ms == 0


def test_frames_are_joined_to_events_and_to_lines() -> None:
    form, text = frames.SseForm(), frames.WsForm()
    items: list[Item] = [GAP, RECORD]

    _, events = parse(form.join([form.item(item) for item in items]))
    assert [event.id for event in events] == ["5-1", "5-2"]
    assert [json.loads(line).get("control") for line in text.join([text.item(i) for i in items]).split(b"\n")] == [
        "gap",
        None,
    ]


def test_records_and_gaps_move_the_reader_nothing_else_does() -> None:
    assert frames.position_of(RECORD) == EntryId(5, 2)
    assert frames.position_of(GAP) == EntryId(5, 1)
    assert frames.position_of(Ended(RUN, EntryId(5, 2), StreamState.CLOSED)) is None
    assert frames.position_of(Degraded(active=True)) is None


def test_forms_are_equal_by_what_they_are() -> None:
    assert len({frames.SseForm(), frames.SseForm("envelope"), frames.SseForm("raw"), frames.WsForm()}) == 3
