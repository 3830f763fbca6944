from __future__ import annotations

import pytest

from tailrace.errors import Malformed
from tailrace.features.runs.model import ENDINGS, TRANSITIONS, RunStatus, check_kind, run_stream


def test_ended_runs_change_no_more() -> None:
    assert {status for status in RunStatus if not TRANSITIONS[status]} == ENDINGS
    assert {status for status in RunStatus if status.ended} == ENDINGS


def test_a_run_that_nobody_has_cannot_be_lost() -> None:
    assert RunStatus.LOST not in TRANSITIONS[RunStatus.QUEUED]
    assert RunStatus.LOST in TRANSITIONS[RunStatus.RUNNING]


@pytest.mark.parametrize("run_id", ["", "a:b", "-a", "a/b", "a\n", "é", "a" * 201])
def test_what_cannot_name_a_stream_cannot_name_a_run(run_id: str) -> None:
    with pytest.raises(Malformed):
        run_stream(run_id)


@pytest.mark.parametrize("kind", ["", " ", "a b", "a" * 65])
def test_a_kind_is_one_word(kind: str) -> None:
    with pytest.raises(Malformed):
        check_kind(kind)
