"""The benchmarks run, small, and what they print and keep is what they measured. No speed is asserted here."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from bench.__main__ import COMMANDS
from bench.harness import Histogram, Measure, Report, interleave, ratio

from tailrace.cli.bench import _ROWS
from tests.support.need import absent

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(240)


async def run_bench(*arguments: str) -> str:
    """`python -m bench …`: what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.slow
async def test_fanout_delivers_every_record_to_every_client() -> None:
    if shutil.which("cc") is None:
        absent("a C compiler", "install the Debian packages gcc and libc6-dev, or run `make test` as root")

    said = await run_bench(
        "fanout", "--clients", "20", "--records", "20", "--rate", "100", "--rounds", "1", "--burst", "500", "--no-nchan"
    )

    [lost] = [line for line in said.splitlines() if "lost, repeated" in line]
    assert lost.split()[-1] == "met"
    assert "gateway / C loop" in said


@pytest.mark.slow
async def test_publish_measures_the_log_and_http() -> None:
    said = await run_bench("publish", "--seconds", "0.3", "--events", "2000", "--http-events", "200", "--rounds", "1")

    assert "awaited publish, p99" in said
    assert "HTTP, NDJSON" in said


@pytest.mark.slow
async def test_migrate_compares_both_ways_and_keeps_a_report_with_pictures(tmp_path: Path) -> None:
    said = await run_bench("migrate", "--seconds", "0.4", "--report", str(tmp_path))

    [lost] = [line for line in said.splitlines() if "messages lost" in line]
    assert lost.split()[-1] == "met"
    assert all(line.split()[-1] == "met" for line in said.splitlines() if "measured / predicted" in line)
    assert "streams / Pub/Sub, publishing p50" in (tmp_path / "migrate.md").read_text()
    page = (tmp_path / "migrate.html").read_text()
    assert page.count("<svg") == 2
    assert "</html>" in page


@pytest.mark.slow
async def test_runs_measures_the_event_store_and_its_viewers() -> None:
    said = await run_bench(
        "runs", "--events", "200", "--viewers", "5", "--rate", "50", "--seconds", "0.5", "--rounds", "1"
    )

    assert "EventStore.add, p99" in said
    [lost] = [line for line in said.splitlines() if "not delivered" in line]
    assert lost.split()[-1] == "met"


def test_the_command_line_names_every_benchmark() -> None:
    assert set(_ROWS) == {*COMMANDS, "profile"}


def test_percentiles_are_right_within_a_bucket() -> None:
    histogram = Histogram()
    for millisecond in range(1, 1_001):
        histogram.add(millisecond / 1_000)

    assert histogram.percentile(50) == pytest.approx(500, rel=0.06)
    assert histogram.percentile(99) == pytest.approx(990, rel=0.06)
    assert sum(histogram.as_data()["buckets"].values()) == histogram.count == 1_000


def test_merged_histograms_count_both() -> None:
    one, other = Histogram([1, 2]), Histogram([3])

    one.merge(other)

    assert one.buckets == [4, 2]


async def test_contenders_take_turns_in_alternating_order() -> None:
    order: list[str] = []

    def contender(name: str, us: float) -> object:
        async def measure() -> dict[str, float]:
            order.append(name)
            return {"us": us}

        return measure

    samples = await interleave({"a": contender("a", 3), "b": contender("b", 2)}, 3)  # type: ignore[dict-item]

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert ratio(samples, "a", "b", "us") == 1.5


def test_a_missed_target_is_said_in_the_report_and_in_its_data() -> None:
    report = Report("x", "X", {}, [Measure("slow", 2, at_most=1), Measure("fast", 2, at_least=1), Measure("free", 2)])

    assert [one.met for one in report.measures] == [False, True, None]
    assert not report.met
    data = json.loads(json.dumps(report.as_data()))
    assert [one["met"] for one in data["measures"]] == [False, True, None]
    assert data["machine"]["cores"] == os.cpu_count()
