"""Event data: checked once, kept byte for byte."""

from __future__ import annotations

import contextlib
import enum
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.codec import Limits, check_label, check_trace, decode_events, encode, minify, prepare
from tailrace.core.event import Event, Json
from tailrace.core.names import StreamName
from tailrace.errors import Malformed, RequestError, TooLarge, UnsupportedMedia

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MB = 1_048_576

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
).filter(lambda value: "\\ud" not in json.dumps(value) or _encodable(value))


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# -- minify --------------------------------------------------------------------------------------------------


@given(json_values, st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_what_is_stored_means_the_same_and_is_never_longer(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    stored = minify(text, max_bytes=MB)

    assert json.loads(stored) == value
    assert len(stored) <= len(text.encode())
    assert minify(stored, max_bytes=MB) == stored


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\u0dn1e.- \t', max_size=40).map(str.encode))
def test_no_bytes_raise_anything_but_malformed(raw: bytes) -> None:
    try:
        stored = minify(raw, max_bytes=MB)
    except Malformed:
        return
    json.loads(stored)
    assert bytes(stored).splitlines() == [stored]


def test_the_limit_counts_what_is_stored() -> None:
    assert minify(b"[1,  2]", max_bytes=5) == b"[1,2]"
    with pytest.raises(TooLarge) as caught:
        minify(b"[1,22]", max_bytes=5)
    assert caught.value.data["limit"] == 5
    with pytest.raises(TooLarge):
        minify(b'"1 2 3"', max_bytes=5)
    assert len(minify(b'"' + b"x" * (MB - 2) + b'"', max_bytes=MB)) == MB
    with pytest.raises(TooLarge):
        minify(b'"' + b"x" * (MB - 1) + b'"', max_bytes=MB)


def test_a_text_with_a_lone_surrogate_is_malformed() -> None:
    with pytest.raises(Malformed):
        minify('"\ud800"', max_bytes=MB)


@pytest.mark.parametrize(
    "raw", [b"[" * 1_000_000, b'{"a":' * 300_000, b"[" * 500_000 + b"]" * 500_000, b'"' + b"[" * 65]
)
def test_deep_nesting_is_malformed_whatever_the_stack(raw: bytes) -> None:
    with pytest.raises(Malformed):
        minify(raw, max_bytes=8 * MB)


def test_long_digits_are_refused_only_as_numbers_out_of_range() -> None:
    nines = "9" * 400
    for good in (f'"{nines}"', f"0.{nines}", "1" + "0" * 308, f"1e-{'0' * 310}1", f"[0.{nines},1]"):
        assert minify(good, max_bytes=MB) == good.encode()
    for bad in (nines, f"-{nines}", f'{{"a":{nines}}}', f"{nines}.0", f"{nines}e1"):
        with pytest.raises(Malformed):
            minify(bad, max_bytes=MB)


HOSTILE = [
    b"[" * 70 + b'"' + b'\\"' * 500_000,
    b"[" * 70 + b"\\" * 1_000_001,
    b'{"a":"[["},' * 90_000,
    b"[" * 500_000,
    b"]" * 500_000 + b"[" * 500_000,
    b"[[]" * 300_000,
    (b"[" * 64 + b"]" * 64 + b",") * 8_000,
    b'"' * 1_000_000,
    b"[" * 70 + b"9" * 1_000_000,
]


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_texts_cost_no_more_than_their_length(raw: bytes) -> None:
    begun = time.process_time()

    with pytest.raises(Malformed):
        minify(raw, max_bytes=8 * MB)

    assert time.process_time() - begun < 2


@given(json_values, st.integers(1, 6))
def test_depth_is_counted_exactly(value: Any, limit: int) -> None:
    def depth(node: Any) -> int:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    text = json.dumps(value)
    if depth(value) <= limit:
        assert json.loads(minify(text, max_bytes=MB, max_depth=limit)) == value
    else:
        with pytest.raises(Malformed):
            minify(text, max_bytes=MB, max_depth=limit)


# -- encode --------------------------------------------------------------------------------------------------


@given(json_values)
def test_a_python_value_reads_back(value: Any) -> None:
    assert json.loads(encode(value, max_bytes=MB)) == value


def test_a_json_passes_as_it_is() -> None:
    stored = minify('{"a":1.0}', max_bytes=MB)

    assert encode(stored, max_bytes=MB) is stored
    with pytest.raises(TooLarge):
        encode(stored, max_bytes=3)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


class Metres(float):
    pass


class Count(int):
    pass


def test_subclasses_of_plain_types_are_their_values() -> None:
    value = [StreamName.parse("run:1"), Colour.RED, Level.HIGH, Metres(1.5), Count(3), (1, 2), True]

    assert encode(value, max_bytes=MB) == b'["run:1","red",2,1.5,3,[1,2],true]'


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        [-math.inf],
        {1, 2},
        b"a",
        {"a": b"b"},
        Json(b"1").__class__,
        object(),
        {1: 2},
        {None: 1},
        "\ud800",
        {"\ud800": 1},
        [Json(b"1")],
    ],
)
def test_what_json_does_not_have_is_malformed(value: Any) -> None:
    with pytest.raises(Malformed):
        encode(value, max_bytes=MB)


def test_values_are_as_deep_as_texts_may_be() -> None:
    def nest(levels: int, inner: Any) -> Any:
        for _ in range(levels):
            inner = [inner]
        return inner

    assert encode(nest(64, 1), max_bytes=MB) == b"[" * 64 + b"1" + b"]" * 64
    assert encode(nest(63, []), max_bytes=MB) == b"[" * 64 + b"]" * 64
    for deep in (nest(65, 1), nest(64, []), nest(5_000, 1)):
        with pytest.raises(Malformed):
            encode(deep, max_bytes=MB)


def test_a_value_that_holds_itself_ends_soon() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Malformed):
        encode(loop, max_bytes=MB)
    loop.append(loop)
    with pytest.raises((Malformed, TooLarge)):
        encode(loop, max_bytes=100_000)


# -- events --------------------------------------------------------------------------------------------------


def test_a_prepared_event_holds_everything() -> None:
    event = Event("a.b", {"n": 1}, "u", "k", "who", TRACE)

    prepared = prepare(event, max_bytes=MB)

    assert (prepared.type, prepared.data) == ("a.b", b'{"n":1}')
    assert (prepared.uid, prepared.key, prepared.actor, prepared.trace) == ("u", "k", "who", TRACE)


@pytest.mark.parametrize(
    "event",
    [
        Event("stream.x"),
        Event(None),  # type: ignore[arg-type]
        Event(1),  # type: ignore[arg-type]
        Event("a", uid=1),  # type: ignore[arg-type]
        Event("a", uid=""),
        Event("a", uid="a\nb"),
        Event("a", key="a\x00"),
        Event("a", actor="x" * 201),
        Event("a", actor="\u00e4"),
        Event("a", trace="00-abc"),
        Event("a", trace=TRACE.upper()),
        Event("a", trace="ff" + TRACE[2:]),
        Event("a", trace=f"00-{'0' * 32}-b7ad6b7169203331-01"),
        Event("a", trace=f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01"),
        Event("a", trace=TRACE + "\n"),
    ],
)
def test_an_event_that_may_not_be_stored_is_malformed(event: Event) -> None:
    with pytest.raises(Malformed):
        prepare(event, max_bytes=MB)


def test_labels_and_traces_are_returned() -> None:
    assert check_label("uid", "~ !") == "~ !"
    assert check_trace(TRACE) == TRACE


BODIES = [
    (b'{"type":"a"}', "application/json", 1),
    (b' {"type":"a","data":{"n": 1.0}} ', "application/json; charset=UTF-8", 1),
    (b'\n[ {"type":"a"} ,\n{"type":"b","data":[1]}]', 'Application/JSON;charset="utf-8"; x=y', 2),
    (b'{"type":"a"}\n\r\n{"type":"b"}\r\n \n', "application/x-ndjson", 2),
    (b'{"type":"a"}', "application/jsonl", 1),
]


@pytest.mark.parametrize(("body", "content_type", "count"), BODIES)
def test_bodies_are_one_event_an_array_or_lines(body: bytes, content_type: str, count: int) -> None:
    assert [event.type for event in decode_events(body, content_type)] == ["a", "b"][:count]


def test_an_event_of_a_body_keeps_its_data_byte_for_byte() -> None:
    labels = f'"uid":"u","key":"k","actor":"w","trace":"{TRACE}"'
    body = f'{{"data": {{"b": 1.10, "a": "\\u00e9 ", "b": 1E2}}, "type":"a", {labels}}}'.encode()

    [event] = decode_events(body, "application/json")

    assert event == Event("a", Json(b'{"b":1.10,"a":"\\u00e9 ","b":1E2}'), "u", "k", "w", TRACE)


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "multipart/form-data"],
)
def test_a_form_cannot_publish(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        decode_events(b'{"type":"a"}', content_type)


@pytest.mark.parametrize(
    ("body", "index"),
    [
        (b"", None),
        (b"[]", None),
        (b"[", None),
        (b"[1,", 0),
        (b'[{"type":"a"},', None),
        (b"[" * 100, None),
        (b"null", 0),
        (b"1", 0),
        (b'"a"', 0),
        (b"{}", 0),
        (b'{"type":1}', 0),
        (b'{"type":"a","dtaa":1}', 0),
        (b'{"type":"a","uid":""}', 0),
        (b'{"type":"a","data":\xff}', 0),
        (b'{"type":"a","data":"\xff"}', 0),
        (b'{"type":"\xff"}', 0),
        (b'{"type":"a","data":1e400}', 0),
        (b'\xef\xbb\xbf{"type":"a"}', 0),
        (b'{"type":"a"}{"type":"b"}', 0),
        (b'[{"type":"a"},{"type":"open"}]', 1),
        (b'[{"type":"a"},{"type":"a","data":NaN}]', None),
        (b'[{"type":"a"},[]]', 1),
        (b'{"type":"a","data":' + b"[" * 65 + b"]" * 65 + b"}", 0),
    ],
)
def test_a_bad_body_names_the_event(body: bytes, index: int | None) -> None:
    with pytest.raises(Malformed) as caught:
        decode_events(body, "application/json")
    assert caught.value.data.get("index") == index


def test_lines_name_the_event_too() -> None:
    with pytest.raises(Malformed) as caught:
        decode_events(b'{"type":"a"}\n{"type":"a"\n}', "application/x-ndjson")
    assert caught.value.data["index"] == 1
    with pytest.raises(Malformed):
        decode_events(b" \n\n", "application/x-ndjson")


def test_bodies_are_limited() -> None:
    limits = Limits(max_events=2, max_body_bytes=100, max_event_bytes=10)
    for body, limit in (
        (b'{"type":"a"}' + b" " * 100, 100),
        (b'[{"type":"a"},{"type":"a"},{"type":"a"}]', 2),
        (b'[{"type":"a"},{"type":"a","data":"123456789"}]', 10),
    ):
        with pytest.raises(TooLarge) as caught:
            decode_events(body, "application/json", limits)
        assert caught.value.data["limit"] == limit
    assert caught.value.data["index"] == 1
    for lines in (b'{"type":"a"}\n' * 3, b"\n" * 9):
        with pytest.raises(TooLarge):
            decode_events(lines, "application/x-ndjson", limits)


def test_data_may_be_as_deep_in_a_batch_as_alone() -> None:
    data = b"[" * 64 + b"]" * 64
    body = b'[{"type":"a","data":' + data + b"}]"

    assert decode_events(body, "application/json")[0].data == data


@given(st.binary(max_size=80) | st.text(alphabet='[]{}",:typeda 1', max_size=60).map(str.encode), st.booleans())
def test_no_body_raises_anything_but_a_request_error(body: bytes, lines: bool) -> None:
    with contextlib.suppress(RequestError):
        decode_events(body, "application/x-ndjson" if lines else "application/json")
