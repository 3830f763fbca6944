"""Full jitter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.backoff import full_jitter


@given(st.integers(-5, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 60))
def test_a_delay_is_spread_below_its_cap_on_top_of_what_was_asked(attempt: int, unit: float, asked: float) -> None:
    delay = full_jitter(attempt, unit, cap_seconds=30, retry_after=asked)

    assert asked <= delay <= asked + 30


def test_the_range_doubles_up_to_the_cap() -> None:
    assert [full_jitter(attempt, 1.0, base_seconds=0.5, cap_seconds=3) for attempt in range(5)] == [0.5, 1, 2, 3, 3]
