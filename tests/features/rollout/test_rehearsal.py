"""The whole move on real processes, changed under load: no event is lost or doubled for any subscriber."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.commands import clean_environment, run_command


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_rehearsal_goes_there_and_back_and_loses_and_doubles_nothing(tmp_path: Path) -> None:
    # A folder for sockets has to have a short name.
    options = ("--rate", "40", "--workflows", "10", "--report", "report.md")

    done = await run_command(
        "rollout", "rehearse", *options, cwd=tmp_path, env=clean_environment(tmp_path), seconds=220
    )

    assert done.code == 0, done.out + done.err
    report = (tmp_path / "report.md").read_text()
    assert re.findall(r"^\| ([\w %]+) \| .* \| ok \|$", report, re.M) == [
        "off", "on", "compare", "10 %", "50 %", "100 %", "back", "old subscriber", "streams", "viewers",
    ]  # fmt: skip
    assert "**Good.**" in report
    assert "guards green" in report
