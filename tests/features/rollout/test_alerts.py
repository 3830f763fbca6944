"""The alert rules, by promtool's own tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.need import need_binary

ALERTS = Path(__file__).parents[3] / "deploy" / "alerts"


@pytest.mark.parametrize("arguments", [["check", "rules", "streams.yml"], ["test", "rules", "streams_test.yml"]])
def test_promtool_accepts_the_alerts(arguments: list[str]) -> None:
    promtool = need_binary("promtool", "prometheus")

    done = subprocess.run([promtool, *arguments], cwd=ALERTS, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_that_it_is_told_and_one_that_it_is_not() -> None:
    rules = (ALERTS / "streams.yml").read_text()
    tests = (ALERTS / "streams_test.yml").read_text()
    names = [line.split(":")[1].strip() for line in rules.splitlines() if "- alert:" in line]

    assert len(names) == 8
    for name in names:
        assert f"name: {name} is told" in tests
        assert f"alertname: {name}, exp_alerts: []" in tests
