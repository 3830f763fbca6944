"""SSE beside the conformance cases: round trips in any cuts, limits, traps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.sse import ServerEvent, SseComment, SseParser, encode_event
from tailrace.errors import Malformed, TooLarge

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\x00"), max_size=10)


def parse(raw: bytes, cuts: list[int], parser: SseParser | None = None) -> list[ServerEvent | SseComment]:
    parser = parser or SseParser()
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [
        event
        for begin, end in zip(places, [*places[1:], len(raw)], strict=True)
        for event in parser.feed(raw[begin:end])
    ]


@given(st.lists(st.tuples(texts, names, names), max_size=4), st.lists(st.integers(0, 400), max_size=8))
def test_what_is_encoded_reads_back_in_any_cuts(events: list[tuple[str, str, str]], cuts: list[int]) -> None:
    raw = b"".join(encode_event(data, event=event, id=id_) for data, event, id_ in events)

    expected = [
        ServerEvent(event or "message", data.replace("\r\n", "\n").replace("\r", "\n"), id_)
        for data, event, id_ in events
    ]
    assert parse(raw, cuts) == expected


@given(
    st.binary(max_size=60) | st.text(alphabet="data: id\r\n\0event", max_size=60).map(str.encode),
    st.lists(st.integers(0, 60)),
)
def test_cuts_change_nothing(raw: bytes, cuts: list[int]) -> None:
    whole, cut = SseParser(comments=True), SseParser(comments=True)

    assert parse(raw, [], whole) == parse(raw, cuts, cut)
    assert (whole.last_event_id, whole.retry_ms) == (cut.last_event_id, cut.retry_ms)


def test_a_cut_inside_a_crlf_neither_ends_nor_loses_an_event() -> None:
    raw = b"event: data\r\ndata: a\r\ndata: b\r\n\r\n"

    for cut in range(len(raw) + 1):
        assert parse(raw, [cut]) == [ServerEvent("data", "a\nb", "")]
    assert parse(raw, list(range(len(raw)))) == [ServerEvent("data", "a\nb", "")]


def test_an_unfinished_event_is_not_given() -> None:
    parser = SseParser(last_event_id="4")

    assert parser.feed(b"id: 5\ndata: a\n") == []
    assert parser.last_event_id == "4"
    assert parser.feed(b"\n") == [ServerEvent("message", "a", "5")]
    assert parser.last_event_id == "5"


@pytest.mark.parametrize(
    "raw", [b"data: " + b"x" * 100, b"data: 1234567890\n" * 6, b": " + b"x" * 100 + b"\n", b"x" * 65]
)
def test_lines_and_events_are_bounded_in_any_cuts(raw: bytes) -> None:
    for cuts in ([], list(range(len(raw)))):
        with pytest.raises(TooLarge):
            parse(raw, cuts, SseParser(max_event_bytes=64))


def test_the_limit_is_of_one_event_not_of_the_stream() -> None:
    event = b"data: " + b"x" * 50 + b"\n\n"

    assert len(parse(event * 100, [], SseParser(max_event_bytes=64))) == 100


def test_a_long_line_in_small_pieces_costs_no_more_than_its_length() -> None:
    parser = SseParser()

    found = [event for _ in range(20_000) for event in parser.feed(b"x" * 50)]

    assert found == []
    assert parser.feed(b"\ndata: a\n\n") == [ServerEvent("message", "a", "")]


def test_retry_is_bounded() -> None:
    parser = SseParser()

    parser.feed(b"retry: " + b"9" * 5_000 + b"\n")

    assert parser.retry_ms == 10**18 - 1


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(Malformed):
        encode_event("\ud800")
