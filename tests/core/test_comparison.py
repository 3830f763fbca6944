"""Comparing Pub/Sub with the stream: missing, extra, late, and twins that count."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.comparison import (
    LATE_SECONDS,
    PATIENCE_SECONDS,
    WINDOW_SECONDS,
    Comparison,
    Counts,
    Side,
    content_of,
)
from tailrace.core.names import StreamName
from tailrace.core.rollout import Readings, judge

ONE, OTHER = StreamName.parse("workflow:1"), StreamName.parse("workflow:2")
START = 100.0
LATER = START + PATIENCE_SECONDS + LATE_SECONDS


def begun(**options: Any) -> Comparison:
    """A comparison that has listened for a while."""
    comparison = Comparison(**options)
    comparison.restart(START - 10)
    return comparison


def test_what_came_on_both_sides_is_the_same_whichever_was_first() -> None:
    comparison = begun()
    for sides in (Side.CHANNEL, Side.STREAM), (Side.STREAM, Side.CHANNEL):
        for side in sides:
            comparison.saw(side, b"a", START)

    assert comparison.expire(LATER) == Counts()
    assert comparison.total == Counts(matched=2)


@pytest.mark.parametrize(("side", "found"), [(Side.CHANNEL, Counts(missing=1)), (Side.STREAM, Counts(extra=1))])
def test_what_came_on_one_side_only_is_told_by_its_side(side: Side, found: Counts) -> None:
    comparison = begun()
    comparison.saw(side, b"a", START)

    assert comparison.expire(START + PATIENCE_SECONDS - 0.1) == Counts()
    assert comparison.expire(START + PATIENCE_SECONDS) == found


def test_a_late_twin_is_late_and_no_mismatch() -> None:
    comparison = begun()
    comparison.saw(Side.CHANNEL, b"a", START)
    comparison.saw(Side.STREAM, b"a", START + LATE_SECONDS + 0.1)

    assert comparison.total == Counts(matched=1, late=1)
    assert comparison.readings(LATER) == Readings(compared=1)


@given(st.integers(0, 5), st.integers(0, 5), st.randoms())
def test_identical_twins_count(channel: int, stream: int, random: object) -> None:
    comparison = begun()
    events = [Side.CHANNEL] * channel + [Side.STREAM] * stream
    random.shuffle(events)  # type: ignore[attr-defined]
    for number, side in enumerate(events):
        comparison.saw(side, b"a", START + number / 100)

    comparison.expire(LATER)

    both = min(channel, stream)
    assert comparison.total == Counts(matched=both, missing=channel - both, extra=stream - both)


@given(st.lists(st.tuples(st.sampled_from(Side), st.sampled_from([b"a", b"b", b"c"]), st.floats(0, 0.5))))
def test_every_event_is_counted_once(events: list[tuple[Side, bytes, float]]) -> None:
    comparison, now = begun(), START
    for side, content, pause in events:
        now += pause
        comparison.saw(side, content, now)
        comparison.expire(now)
    comparison.expire(now + LATER)

    total = comparison.total
    assert 2 * total.matched + total.missing + total.extra == len(events)
    assert comparison.waiting == 0
    if now - START < PATIENCE_SECONDS:
        counted = {side: Counter(content for where, content, _ in events if where is side) for side in Side}
        assert total.missing == (counted[Side.CHANNEL] - counted[Side.STREAM]).total()


def test_what_came_before_we_listened_on_both_sides_is_not_judged() -> None:
    comparison = Comparison()
    comparison.saw(Side.STREAM, b"its twin was a moment earlier", START)
    comparison.saw(Side.CHANNEL, b"a", START + LATE_SECONDS)

    assert comparison.expire(LATER + 1) == Counts(missing=1, skipped=1)


def test_a_doubtful_event_matches_but_is_no_mismatch() -> None:
    comparison = begun()
    comparison.saw(Side.STREAM, b"a", START, doubtful=True)
    comparison.saw(Side.STREAM, b"b", START, doubtful=True)
    comparison.saw(Side.CHANNEL, b"b", START)

    assert comparison.expire(LATER) == Counts(skipped=1)
    assert comparison.total == Counts(matched=1, skipped=1)


def test_what_equals_a_doubtful_event_is_doubtful_too() -> None:
    comparison = begun()
    comparison.saw(Side.STREAM, b"a", START, doubtful=True)  # its message came before we listened
    for number in range(1, 30):
        comparison.saw(Side.CHANNEL, b"a", START + number / 10)
        comparison.saw(Side.STREAM, b"a", START + number / 10)

    assert comparison.expire(START + 20) == Counts(skipped=1)
    comparison.saw(Side.CHANNEL, b"a", START + 20)
    assert comparison.expire(START + 30) == Counts(missing=1)


def test_a_lost_connection_makes_nothing_missing() -> None:
    comparison = begun()
    comparison.saw(Side.CHANNEL, b"a", START)
    comparison.restart(START + 1)
    comparison.saw(Side.STREAM, b"a", START + 1.1)

    comparison.expire(LATER + 1)

    assert comparison.total == Counts(skipped=2)


def test_what_waits_is_bounded_and_given_up_is_not_missing() -> None:
    comparison = begun(max_waiting=10)
    for number in range(100):
        comparison.saw(Side.CHANNEL, b"%d" % number, START)
        assert comparison.waiting <= 10

    comparison.expire(LATER)

    assert comparison.total == Counts(missing=10, skipped=90)


def test_only_the_window_is_judged() -> None:
    comparison = begun()
    for number in range(200):
        comparison.saw(Side.CHANNEL, b"%d" % number, START)
    comparison.expire(LATER)
    assert judge(comparison.readings(LATER)).roll_back

    assert comparison.readings(LATER + WINDOW_SECONDS + 1) == Readings()


def test_a_longer_window_and_more_patience_judge_what_is_older_and_wait_for_what_is_later() -> None:
    comparison = begun(window_seconds=600, patience_seconds=11.0)
    for number in range(200):
        comparison.saw(Side.CHANNEL, b"%d" % number, START)
        if number < 100:
            comparison.saw(Side.STREAM, b"%d" % number, START + 10)

    assert comparison.expire(START + 10) == Counts()
    comparison.expire(START + 12)

    assert comparison.readings(START + 300).mismatched == 100
    assert comparison.readings(START + 700) == Readings()


def test_a_mismatch_is_seen_behind_a_long_clean_time() -> None:
    comparison = begun()
    for number in range(6_000):
        at = START + number / 100
        comparison.saw(Side.CHANNEL, b"%d" % number, at)
        if number < 5_400 or number % 100 != 50:
            comparison.saw(Side.STREAM, b"%d" % number, at)
        comparison.expire(at)
    end = START + 60

    assert not judge(comparison.readings(START + 54)).roll_back
    assert judge(comparison.readings(end)).roll_back


def test_events_that_still_wait_for_their_time_are_in_no_rate() -> None:
    comparison = begun()
    for number in range(1_000):
        comparison.saw(Side.CHANNEL, b"%d" % number, START)
        comparison.saw(Side.STREAM, b"%d" % number, START)

    assert comparison.readings(START + 1).compared == 0
    assert comparison.readings(LATER).compared == 1_000


def test_the_lag_is_what_nearly_all_have_and_what_waits_counts() -> None:
    comparison = begun()
    for number in range(100):
        comparison.saw(Side.CHANNEL, b"%d" % number, START)
        comparison.saw(Side.STREAM, b"%d" % number, START + (3 if number == 0 else 0.1))
    assert comparison.readings(START + 3).lag_seconds == pytest.approx(0.1)

    for number in range(10):
        comparison.saw(Side.CHANNEL, b"waits %d" % number, START + 3)

    assert comparison.readings(START + 5.5).lag_seconds == pytest.approx(2.5)


def test_one_slow_event_is_no_lag() -> None:
    comparison = begun()
    comparison.saw(Side.CHANNEL, b"a", START)

    assert comparison.readings(START + 3).lag_seconds == 0


def test_whitespace_is_no_difference_and_everything_else_is() -> None:
    assert content_of(ONE, b'{"a": 1, "b": [2]}') == content_of(ONE, b'{"a":1,"b":[2]}')
    assert content_of(ONE, b'{"a":1}') != content_of(ONE, b'{"a":1.0}')
    assert content_of(ONE, b'{"a":1}') != content_of(OTHER, b'{"a":1}')
    assert content_of(ONE, b"no json") == content_of(ONE, b'{"text":"no json"}')
    assert content_of(ONE, b"\xff") == content_of(ONE, b'{"base64":"/w=="}')
