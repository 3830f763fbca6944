"""Two ways that hold the same messages, in any interleaving: each is told once, in the order of the leading one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.workflow.merge import GRACE_SECONDS, Merge, Way


def frame(kind: str, n: int) -> bytes:
    return f"{kind}{n}".encode()


@given(
    contents=st.lists(st.integers(0, 3), max_size=12),
    steps=st.lists(st.booleans(), max_size=24),
    lead=st.sampled_from(Way),
    follows=st.sets(st.integers(0, 24), max_size=2),
)
def test_what_both_ways_hold_is_told_once_in_order(
    contents: list[int], steps: list[bool], lead: Way, follows: set[int]
) -> None:
    merge = Merge(lead)
    told: list[bytes] = []
    at = {Way.CHANNEL: 0, Way.STREAM: 0}
    for index, by_channel in enumerate([*steps, *[True] * len(contents), *[False] * len(contents)]):
        if index in follows:
            told += merge.follow(Way.STREAM if merge.lead is Way.CHANNEL else Way.CHANNEL, 0.0)
        way = Way.CHANNEL if by_channel else Way.STREAM
        if at[way] == len(contents):
            continue
        n = contents[at[way]]
        at[way] += 1
        key = bytes([n])
        told += merge.message(key, frame("m", n), 0.0) if by_channel else merge.record(key, frame("r", n), 0.0)

    assert merge.overdue(GRACE_SECONDS / 2) == []
    assert sorted(each[1:] for each in told) == sorted(b"%d" % n for n in contents)
    if not follows:
        assert [each[1:] for each in told] == [b"%d" % n for n in contents]
    assert merge.settled(Way.STREAM, 2 * GRACE_SECONDS)
    assert merge.settled(Way.CHANNEL, 2 * GRACE_SECONDS)


def test_what_came_on_one_way_only_is_told_after_the_grace() -> None:
    for lead in Way:
        merge = Merge(lead)
        told = merge.record(b"a", b"record", 0.0) + merge.message(b"b", b"message", 0.0)

        late = merge.overdue(GRACE_SECONDS)

        assert sorted(told + late) == [b"message", b"record"]
        assert len(late) == 1


def test_a_twin_that_comes_after_the_grace_is_not_told_again() -> None:
    merge = Merge(Way.CHANNEL)
    merge.record(b"a", b"record", 0.0)
    assert merge.overdue(2.0) == [b"record"]

    assert merge.message(b"a", b"message", 2.5) == []


def test_equal_messages_are_counted() -> None:
    merge = Merge(Way.CHANNEL)

    told = [*merge.message(b"a", b"m", 0.0), *merge.message(b"a", b"m", 0.0), *merge.record(b"a", b"r", 0.0)]
    told += merge.message(b"a", b"m", 0.0)
    told += merge.record(b"a", b"r", 0.0) + merge.record(b"a", b"r", 0.0)

    assert told == [b"m", b"m", b"m"]


def test_a_way_is_not_left_while_it_has_told_what_the_other_still_brings() -> None:
    merge = Merge(Way.CHANNEL)
    merge.message(b"a", b"m", 0.0)

    assert not merge.settled(Way.STREAM, 0.5)
    assert merge.settled(Way.CHANNEL, 0.5)
    assert merge.settled(Way.STREAM, GRACE_SECONDS)
