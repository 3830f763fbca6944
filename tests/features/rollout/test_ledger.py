"""What a rehearsal finds: lost, doubled, foreign, out of order."""

from __future__ import annotations

import pytest

from tailrace.cli.rehearse.ledger import Ledger, Sent, Verdict
from tailrace.core.rollout import Mode


def ledger(*modes: Mode, failed: int = 0) -> Ledger:
    made = Ledger()
    for number, mode in enumerate(modes, 1):
        made.add(Sent("a", number, mode, failed=number == failed))
    return made


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ([1, 2, 3], Verdict(3)),
        ([1, 3], Verdict(3, lost=1)),
        ([1, 2, 2, 3], Verdict(3, doubled=1)),
        ([2, 1, 3], Verdict(3, unordered=1)),
        ([1, 2, 3, 4], Verdict(3, foreign=1)),
        ([], Verdict(3, lost=3)),
    ],
)
def test_each_fault_is_told_by_its_name(seen: list[int], found: Verdict) -> None:
    sent = ledger(Mode.PUBSUB, Mode.DUAL, Mode.DUAL)

    assert sent.judge_channels({"a": seen}) == found
    assert found.good is (seen == [1, 2, 3])


def test_a_stream_has_what_was_written_there_and_nothing_else() -> None:
    sent = ledger(Mode.PUBSUB, Mode.DUAL, Mode.STREAMS)

    assert sent.judge_streams({"a": [2, 3]}).good
    assert sent.judge_streams({"a": [1, 2, 3]}).foreign == 1
    assert sent.judge_channels({"a": [1, 2]}).good


def test_what_failed_may_be_there_or_not() -> None:
    sent = ledger(Mode.DUAL, Mode.DUAL, failed=2)

    assert sent.judge_channels({"a": [1]}).good
    assert sent.judge_channels({"a": [1, 2]}).good


def test_a_workflow_that_nobody_published_is_foreign() -> None:
    assert ledger().judge_channels({"b": [1]}).foreign == 1
