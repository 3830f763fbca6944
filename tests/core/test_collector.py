"""A process that serves collects rarely, and only while it serves."""

from __future__ import annotations

import gc

import pytest

from tailrace.collector import THRESHOLDS, rare_collections


def test_collections_are_rare_while_it_serves_and_as_before_afterwards() -> None:
    before = gc.get_threshold()

    with rare_collections():
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > 0

    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_a_failure_leaves_the_collector_as_it_was() -> None:
    before = gc.get_threshold()

    with pytest.raises(RuntimeError), rare_collections():
        raise RuntimeError

    assert gc.get_threshold() == before
