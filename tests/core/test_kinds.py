"""Stream kinds, and names beside the conformance cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.kinds import Kinds, Start, StreamKind
from tailrace.core.names import StreamName, escape_name, foreign_type
from tailrace.errors import InvalidStream


def test_a_page_refresh_shows_a_run_from_its_start_and_a_user_from_now() -> None:
    kinds = Kinds()

    assert kinds.of(StreamName.parse("run:1")).start is Start.FIRST
    assert kinds.of(StreamName.parse("user:1")).start is Start.NOW


def test_an_application_may_replace_a_kind_and_add_one() -> None:
    kinds = Kinds([StreamKind(name="run", max_length=5), StreamKind(name="order", start=Start.NOW)])

    assert kinds.of(StreamName.parse("run:1")).max_length == 5
    assert kinds.of(StreamName.parse("order:1")).start is Start.NOW
    assert "order" in kinds
    assert "other" not in kinds


def test_an_unknown_kind_has_the_default_policy_under_its_own_name() -> None:
    assert Kinds().of(StreamName.parse("other:1")) == StreamKind(name="other")


def test_a_stream_name_is_checked_once() -> None:
    name = StreamName.parse("run:1")

    assert StreamName.parse(name) is name


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_two_texts_never_get_one_name(one: str, other: str) -> None:
    try:
        names = escape_name(one), escape_name(other)
    except (InvalidStream, UnicodeEncodeError):
        return
    assert (names[0] == names[1]) == (one == other)
    assert StreamName.parse(f"user:{names[0]}").name == names[0]


@pytest.mark.parametrize(
    ("text", "type_"), [("a.b", "a.b"), ("stream.gap", "foreign"), ("", "foreign"), ("a\nb", "foreign")]
)
def test_somebody_elses_type_is_taken_only_if_it_may_be_one(text: str, type_: str) -> None:
    assert foreign_type(text) == type_
