"""Every fuzz target over its corpus and over many inputs near to it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz import CORPUS, TARGETS
from tests.fuzz.inputs import corpus, inputs


def check_of(target: str) -> Callable[[bytes], None]:
    check: Callable[[bytes], None] = importlib.import_module(f"fuzz.{target}").check
    return check


@pytest.mark.parametrize("target", TARGETS)
def test_target_holds_for_its_corpus(target: str) -> None:
    check = check_of(target)

    for data in (b"", *corpus(target)):
        check(data)


@pytest.mark.parametrize("target", TARGETS)
def test_target_holds_near_its_corpus(target: str) -> None:
    check = check_of(target)

    @settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(target))
    def examples(data: bytes) -> None:
        check(data)

    examples()


def test_every_target_has_its_invariant_in_its_first_line() -> None:
    files = {path.stem for path in CORPUS.parent.glob("[!_]*.py")}

    assert files == set(TARGETS)
    for target in TARGETS:
        assert (CORPUS.parent / f"{target}.py").read_text().startswith('"""No matter what '), target
        assert corpus(target), target
