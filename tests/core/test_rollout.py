"""Moving from Pub/Sub to the log: the truth table, the order of moving, settling, the guards."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.names import StreamName
from tailrace.core.rollout import (
    SETTLE_SECONDS,
    GuardLimits,
    Health,
    Mode,
    Readings,
    Rollout,
    bucket,
    finalized,
    judge,
    mode,
    moved,
    next_step,
    of_kind,
    reading,
    rolled_back,
    writing,
)
from tailrace.errors import Conflict, Malformed

STREAM = StreamName.parse("workflow:42")
LATER = 10_000.0
"""Long after every change of these tests."""

TRUTH = {
    # enabled, has_streams, is_on, is_finalized
    (False, False, False, False): Mode.PUBSUB,
    (False, False, False, True): Mode.PUBSUB,
    (False, False, True, False): Mode.PUBSUB,
    (False, False, True, True): Mode.PUBSUB,
    (False, True, False, False): Mode.PUBSUB,
    (False, True, False, True): Mode.PUBSUB,
    (False, True, True, False): Mode.PUBSUB,
    (False, True, True, True): Mode.PUBSUB,
    (True, False, False, False): Mode.PUBSUB,
    (True, False, False, True): Mode.PUBSUB,
    (True, False, True, False): Mode.PUBSUB,
    (True, False, True, True): Mode.PUBSUB,
    (True, True, False, False): Mode.PUBSUB,
    (True, True, False, True): Mode.PUBSUB,
    (True, True, True, False): Mode.DUAL,
    (True, True, True, True): Mode.STREAMS,
}


@pytest.mark.parametrize("row", TRUTH)
def test_every_row_of_the_truth_table(row: tuple[bool, bool, bool, bool]) -> None:
    enabled, has_streams, is_on, is_finalized = row

    assert TRUTH[row] is mode(enabled=enabled, has_streams=has_streams, is_on=is_on, is_finalized=is_finalized)


def test_the_truth_table_has_all_rows() -> None:
    assert set(TRUTH) == set(itertools.product((False, True), repeat=4))


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99, 100])
def test_the_flag_and_a_server_without_streams_win_over_any_stored_percentage(percent: int) -> None:
    for is_finalized in (False, True):
        rollout = Rollout(percent=percent, finalized=is_finalized)

        assert writing(rollout, STREAM, LATER, enabled=False) is Mode.PUBSUB
        assert writing(rollout, STREAM, LATER, has_streams=False) is Mode.PUBSUB
        assert not reading(rollout, STREAM, LATER, enabled=False)
        assert not reading(rollout, STREAM, LATER, has_streams=False)


@pytest.mark.parametrize("percent", [1, 10, 50, 90])
@pytest.mark.parametrize("name", ["workflow:{}", "workflow:job-{}", "run:0000{}", "workflow:2026-01-01-{}"])
def test_the_share_of_streams_is_the_percentage(name: str, percent: int) -> None:
    rollout = Rollout(percent=percent)
    streams = [StreamName.parse(name.format(number)) for number in range(10_000)]

    share = sum(writing(rollout, stream, LATER) is Mode.DUAL for stream in streams) / 100

    assert abs(share - percent) <= 2


@given(st.from_regex(r"[a-z][a-z0-9-]{0,9}:[A-Za-z0-9][A-Za-z0-9._~@-]{0,19}", fullmatch=True), st.data())
def test_a_stream_that_is_on_stays_on_when_the_percentage_grows(name: str, data: st.DataObject) -> None:
    small = data.draw(st.integers(0, 100))
    large = data.draw(st.integers(small, 100))
    stream = StreamName.parse(name)

    if writing(Rollout(percent=small), stream, LATER) is Mode.DUAL:
        assert writing(Rollout(percent=large), stream, LATER) is Mode.DUAL


def test_all_and_nothing_are_meant() -> None:
    streams = [StreamName.parse(f"workflow:{number}") for number in range(1_000)]

    assert {writing(Rollout(percent=100), stream, LATER) for stream in streams} == {Mode.DUAL}
    assert {writing(Rollout(percent=0), stream, LATER) for stream in streams} == {Mode.PUBSUB}


def test_the_order_of_moving_never_changes() -> None:
    # Another order would switch streams in the middle of somebody's rollout.
    assert [bucket(StreamName.parse(f"workflow:{number}")) for number in range(4)] == [2400, 4916, 8674, 6272]


def test_a_kind_that_nobody_moved_is_on_pubsub() -> None:
    assert writing(of_kind({"run": Rollout(percent=100)}, STREAM), STREAM, LATER) is Mode.PUBSUB
    assert writing(of_kind({"workflow": Rollout(percent=100)}, STREAM), STREAM, LATER) is Mode.DUAL


# -- settling ---------------------------------------------------------------------------------------------------------

AT_ALL = Rollout(percent=100, since=0)


def states_of_processes(before: Rollout, after: Rollout, now: float) -> list[Rollout]:
    """What processes may go by: one that has not heard yet goes by what was before."""
    return [before, after] if now - after.since < SETTLE_SECONDS else [after]


CHANGES = {
    "on": (Rollout(), moved(Rollout(), 100, now=LATER, by="ann")),
    "off": (AT_ALL, rolled_back(AT_ALL, now=LATER, by="ann")),
    "finalize": (AT_ALL, finalized(AT_ALL, now=LATER, by="ann")),
    "back from finalized": (
        finalized(AT_ALL, now=1_000, by="ann"),
        rolled_back(finalized(AT_ALL, now=1_000, by="ann"), now=LATER, by="ann"),
    ),
    "less": (AT_ALL, moved(AT_ALL, 10, now=LATER, by="ann")),
}


def test_a_roll_back_right_after_another_change_lets_nobody_down() -> None:
    final = finalized(AT_ALL, now=LATER, by="ann")
    back = rolled_back(final, now=LATER + 1, by="ann")
    again = rolled_back(back, now=LATER + 2, by="ann")
    less = rolled_back(moved(AT_ALL, 1, now=LATER, by="ann"), now=LATER + 1, by="ann")

    assert (again.was_percent, again.was_finalized) == (100, True)
    assert writing(less, STREAM, LATER + 2) is Mode.DUAL


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("after_seconds", [0.0, 0.5, 4.9, 5.0, 5.1, 9.9, 10.0, 10.1, 60.0])
def test_no_reader_stands_where_a_writer_does_not_write(name: str, after_seconds: float) -> None:
    before, after = CHANGES[name]
    now = LATER + after_seconds
    processes = states_of_processes(before, after, now)

    for reader in processes:
        for writer in processes:
            wrote = writing(writer, STREAM, now)
            if reading(reader, STREAM, now):
                assert wrote in (Mode.DUAL, Mode.STREAMS)
            else:
                assert wrote in (Mode.DUAL, Mode.PUBSUB)


@pytest.mark.parametrize("name", CHANGES)
def test_after_settling_only_the_new_way_is_left(name: str) -> None:
    _, after = CHANGES[name]
    expected = {
        "on": Mode.DUAL,
        "off": Mode.PUBSUB,
        "finalize": Mode.STREAMS,
        "back from finalized": Mode.PUBSUB,
        "less": Mode.PUBSUB,
    }

    assert writing(after, STREAM, LATER + 2 * SETTLE_SECONDS) is expected[name]
    assert reading(after, STREAM, LATER + 2 * SETTLE_SECONDS) is (expected[name] is not Mode.PUBSUB)


# -- changes ----------------------------------------------------------------------------------------------------------


def test_a_change_says_who_and_when_and_what_was_before() -> None:
    ten = moved(Rollout(), 10, now=50, by="ann", reason="first", hold_seconds=60)
    fifty = moved(ten, 50, now=90, by="bob")

    assert ten == Rollout(percent=10, since=50, by="ann", reason="first", hold_seconds=60)
    assert fifty == Rollout(percent=50, since=90, was_percent=10, by="bob")


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percentage_out_of_range_is_refused(percent: int) -> None:
    with pytest.raises(Malformed):
        moved(Rollout(), percent, now=0, by="ann")


def test_finalizing_needs_all_streams_and_settled_processes() -> None:
    with pytest.raises(Conflict, match="50 %"):
        finalized(Rollout(percent=50), now=LATER, by="ann")
    with pytest.raises(Conflict, match="settled"):
        finalized(Rollout(percent=100, since=LATER - 1), now=LATER, by="ann")


def test_finalizing_twice_is_once() -> None:
    once = finalized(AT_ALL, now=LATER, by="ann")

    assert finalized(once, now=LATER + 60, by="bob") == once


def test_a_change_that_has_not_settled_holds_back_all_but_a_roll_back() -> None:
    ten = moved(Rollout(), 10, now=LATER, by="ann")

    with pytest.raises(Conflict, match="settled") as refused:
        moved(ten, 50, now=LATER + 4, by="ann")
    assert refused.value.data["wait_seconds"] == 6
    assert rolled_back(ten, now=LATER + 4, by="ann").percent == 0
    assert moved(ten, 50, now=LATER + 2 * SETTLE_SECONDS, by="ann").percent == 50


def test_only_a_roll_back_leads_out_of_finalized() -> None:
    final = finalized(AT_ALL, now=LATER, by="ann")

    with pytest.raises(Conflict, match="roll back"):
        moved(final, 50, now=LATER, by="ann")
    assert not rolled_back(final, now=LATER, by="ann").finalized


@pytest.mark.parametrize(
    ("rollout", "health", "now", "expected"),
    [
        (Rollout(percent=10, hold_seconds=60), Health.GREEN, 59, None),
        (Rollout(percent=10, hold_seconds=60), Health.GREEN, 60, 50),
        (Rollout(percent=50, hold_seconds=60), Health.GREEN, 61, 100),
        (Rollout(percent=100, hold_seconds=60), Health.GREEN, 61, None),
        (Rollout(percent=10, hold_seconds=60), Health.UNKNOWN, 61, None),
        (Rollout(percent=10, hold_seconds=60), Health.RED, 61, None),
        (Rollout(percent=10), Health.GREEN, 1_000, None),
    ],
)
def test_holding_advances_only_when_its_time_is_over_and_the_guards_are_green(
    rollout: Rollout, health: Health, now: float, expected: int | None
) -> None:
    assert next_step(rollout, health, now) == expected


# -- guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readings", "health"),
    [
        (Readings(), Health.UNKNOWN),
        (Readings(compared=1_000, published=1_000), Health.GREEN),
        (Readings(compared=1_000, mismatched=9), Health.GREEN),
        (Readings(compared=1_000, mismatched=10), Health.RED),
        (Readings(compared=99, mismatched=99), Health.UNKNOWN),
        (Readings(compared=1_000, published=100, publish_errors=4), Health.GREEN),
        (Readings(compared=1_000, published=100, publish_errors=5), Health.RED),
        (Readings(published=100, publish_errors=100), Health.RED),
        (Readings(published=99, publish_errors=99), Health.UNKNOWN),
        (Readings(compared=1_000, lag_seconds=1.99), Health.GREEN),
        (Readings(compared=1_000, lag_seconds=2.0), Health.RED),
        (Readings(lag_seconds=2.0), Health.RED),
    ],
)
def test_guards_roll_back_at_their_limits(readings: Readings, health: Health) -> None:
    verdict = judge(readings)

    assert verdict.health is health
    assert verdict.roll_back is (health is Health.RED)
    assert bool(verdict.reasons) is (health is Health.RED)


def test_every_reason_is_told() -> None:
    readings = Readings(compared=200, mismatched=100, published=100, publish_errors=50, lag_seconds=3)

    assert judge(readings).reasons == (
        "100 of 200 events differ",
        "50 of 100 publishes failed",
        "the stream is 3.0 s behind",
    )


def test_limits_can_be_others() -> None:
    strict = GuardLimits(mismatch=0.001, least_compared=10)

    assert judge(Readings(compared=1_000, mismatched=1), strict).roll_back
