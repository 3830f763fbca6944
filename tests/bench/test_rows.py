"""The rows about many connections run, small: every delivery is checked, no speed is asserted."""

from __future__ import annotations

import shutil

import pytest
from bench.harness import Histogram
from bench.knee import find_knee
from bench.load import Outcome
from bench.stack import Heard

from tests.bench.test_bench import run_bench
from tests.support.need import absent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def compiler() -> None:
    if shutil.which("cc") is None:
        absent("a C compiler", "install the Debian packages gcc and libc6-dev, or run `make test` as root")


def verdicts(said: str, name: str) -> list[str]:
    """The last words of the lines about a measure."""
    return [line.split()[-1] for line in said.splitlines() if name in line]


async def test_load_delivers_every_event_to_its_client_both_ways() -> None:
    # Publishers in Python; the knee's test has the one in C.
    options = ["--clients", "20", "--rate", "400", "--seconds", "1", "--ndjson-seconds", "1", "--lines", "5"]

    said = await run_bench("load", *options, "--generators", "2")

    assert verdicts(said, "lost, repeated") == ["met", "met"]
    assert "publish to client, p99" in said
    assert "deliveries were seen" not in said  # every delivery told its delay


async def test_a_fan_out_over_websocket_delivers_every_record_to_every_client() -> None:
    options = ["--clients", "20", "--records", "20", "--rate", "100", "--rounds", "1", "--burst", "500", "--no-nchan"]

    said = await run_bench("fanout-ws", *options)

    assert verdicts(said, "lost, repeated") == ["met"]
    assert "20 WebSocket clients" in said


async def test_readers_that_stalled_have_everything_in_the_end() -> None:
    said = await run_bench("slow", "--clients", "20", "--many", "5", "--seconds", "0.5", "--rounds", "1")

    [lost] = [line for line in said.splitlines() if "lost, repeated" in line]
    assert "met" in lost.split()
    assert verdicts(said, "were left behind") == ["met"]  # they did stall


async def test_a_storm_makes_everybody_current() -> None:
    said = await run_bench("storm", "--clients", "20", "--behind", "30", "--rounds", "1")

    assert verdicts(said, "lost or repeated records") == ["met"]
    assert "one stream: reads of the log" in said


async def test_resume_goes_on_at_the_right_record_anywhere() -> None:
    said = await run_bench("resume", "--records", "3000", "--places", "10", "--rounds", "1")

    assert verdicts(said, "wrong, lost or repeated records") == ["met"]
    assert "all of it, SSE" in said


async def test_the_number_of_an_append_can_be_left_out_and_what_it_costs_is_said() -> None:
    said = await run_bench("append", "--events", "200", "--large", "5", "--numbered", "200", "--rounds", "1")

    assert "1000 a call: a call, p99" in said
    assert "idempotency: the number's cost" in said


async def test_the_collector_is_watched_under_load_and_nothing_is_lost() -> None:
    said = await run_bench("gc", "--clients", "10", "--rate", "200", "--seconds", "0.5", "--rounds", "1")

    assert verdicts(said, "lost, repeated") == ["met"]
    assert "return, ours: a pause, p99" in said


async def test_settings_are_measured_over_every_way_to_redis() -> None:
    options = ["--awaited", "10", "--concurrent", "100", "--rounds", "1", "--only", "loopback"]

    said = await run_bench("settings", *options)

    assert "TCP on loopback: awaited p50 / base" in said
    assert "TLS on loopback: awaited p50 / base" in said


async def test_memory_is_measured_for_every_kind_of_connection() -> None:
    said = await run_bench("memory", "--clients", "20", "--many", "0", "--starts", "1")

    for name in ("SSE connection", "WebSocket connection", "idle stream", "tailrace serve", "import tailrace"):
        assert name in said


def outcome(p99_ms: float, lost: int = 0) -> Outcome:
    delays = Histogram()
    delays.add(p99_ms / 1000)
    heard = Heard(1, 0, 0, 0, 0, 1, 1, 1.0, 0.0, delays)
    return Outcome(1, heard, 0, lost, Histogram(), 0.0, {}, 0, 0.0)


@pytest.mark.parametrize("first", [1_000, 10_000, 100_000])
async def test_knee_is_found_from_below_and_from_above(first: float) -> None:
    async def measure(rate: float) -> Outcome:
        return outcome(10 if rate <= 12_345 else 1_000)

    knee = await find_knee(measure, first)

    assert 12_345 * 0.95 < knee <= 12_345


async def test_a_rate_that_loses_is_behind_the_knee() -> None:
    async def measure(rate: float) -> Outcome:
        return outcome(1, lost=0 if rate < 5_000 else 1)

    knee = await find_knee(measure, 4_000)

    assert 4_500 < knee < 5_000


async def test_the_search_for_the_knee_ends_when_its_time_is_over() -> None:
    asked: list[float] = []

    async def measure(rate: float) -> Outcome:
        asked.append(rate)
        return outcome(1)

    assert await find_knee(measure, 1_000, longest=0) == 0
    assert asked == []


async def test_the_knee_is_a_row_of_its_own() -> None:
    options = ["--clients", "20", "--rate", "200", "--seconds", "0.5", "--longest", "1"]

    said = await run_bench("knee", *options)

    assert "events a second" in said
