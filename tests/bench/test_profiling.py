"""Stacks become tables."""

from __future__ import annotations

from bench.profiling import tables


def test_a_table_counts_where_samples_ended_and_what_they_went_through() -> None:
    said = tables("main;serve;write 6\nmain;serve;read 3\nmain;serve;main 1\n", 2)

    assert said == [
        "",
        "  % itself",
        " 60.0 write",
        " 30.0 read",
        "",
        "  % and what it calls",
        "100.0 main",
        "100.0 serve",
    ]
