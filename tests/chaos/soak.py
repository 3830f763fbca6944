"""`python -m tests.chaos.soak --hours H [--report FILE]`: a steady load for hours, and what may not grow.

Rules of this file
1. One gateway is never restarted, so that what it leaks is seen; the other one is drained again and again.
2. A sample is taken when a mild fault is over and everybody was given records again; streams are short and soon full.
3. The verdict is about the second half: Theil and Sen's slope over its samples, times its length, is its growth. Each
   series has a bound for it (`BOUNDS`). A median of slopes does not care about single spikes.
4. All that the chaos run's judge asks for is asked here too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.arena import Arena, Result, arena
from tests.chaos.footprint import metric
from tests.chaos.load import Load
from tests.chaos.nemesis import Step
from tests.chaos.wire import http_client
from tests.chaos.writers import LENGTHS

__all__ = ["BOUNDS", "Growth", "growth", "growths", "main"]

MILD = ("client_storm", "gateway_stop_second", "client_kill", "latency", "silent_pushes")
STREAMS = ("task:a", "task:b", "task:c")
LOAD = Load(
    streams=STREAMS,
    lossy=STREAMS,
    sets=2,
    pause=0.25,
    cuts=(0.5, 2.0),
    killed=False,
    lengths={**LENGTHS, "task": 1_000},
    seldom=20,
)

Series = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Growth:
    """How much one series grew in the second half."""

    name: str
    start: float
    """Median of the half's first third."""
    end: float
    """Median of its last third."""
    grown: float
    bound: float

    @property
    def flat(self) -> bool:
        """Whether that is no growth."""
        return self.grown <= self.bound


RULE = (
    "Rule: over the samples of the second half, Theil and Sen's slope times the half's length is the growth. A series "
    "is flat if that is at most its bound: the larger of a number and a share of its median (`tests/chaos/soak.py`). "
    "Samples are taken in the calm after each fault; streams keep about 1 000 records and are full after some minutes."
)
BOUNDS: dict[str, tuple[float, float]] = {
    "gateway RSS, MiB": (4.0, 0.03),
    "gateway descriptors": (4.0, 0.0),
    "gateway threads": (2.0, 0.0),
    "gateway connections": (4.0, 0.0),
    "gateway subscriptions": (4.0, 0.0),
    "gateway topics": (1.0, 0.0),
    "drained gateway RSS, MiB": (4.0, 0.03),
    "client tasks": (6.0, 0.0),
    "Redis memory, MiB": (1.0, 0.03),
    "Redis clients": (4.0, 0.0),
    "Redis keys": (4.0, 0.0),
}
"""Series → how much it may grow in the second half: the larger of a number and a share of its median."""


def growth(name: str, times: Sequence[float], values: Sequence[float]) -> Growth:
    """Judge the second half of a series."""
    half = [(at, value) for at, value in zip(times, values, strict=True) if at >= times[-1] / 2]
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in itertools.combinations(half, 2) if t > s]
    grown = statistics.median(slopes) * (half[-1][0] - half[0][0]) if slopes else 0.0
    third = max(1, len(half) // 3)
    start, end = (statistics.median(value for _, value in part) for part in (half[:third], half[-third:]))
    number, share = BOUNDS[name]
    return Growth(name, start, end, grown, max(number, share * statistics.median(value for _, value in half)))


def growths(times: Sequence[float], series: Series) -> list[Growth]:
    """Judge all of them."""
    return [growth(name, times, values) for name, values in series.items()]


async def sample(made: Arena) -> dict[str, float]:
    """All series at this moment."""
    steady, drained = (psutil.Process(gateway.pid) for gateway in made.gateways)
    async with http_client() as client:
        text = (await client.get(f"{made.gateways[0].url}/metrics")).text
    memory = await made.redis.info("memory")
    clients = await made.redis.info("clients")
    return {
        "gateway RSS, MiB": steady.memory_info().rss / 2**20,
        "gateway descriptors": float(steady.num_fds()),
        "gateway threads": float(steady.num_threads()),
        "gateway connections": metric(text, "tailrace_connections"),
        "gateway subscriptions": metric(text, "tailrace_subscriptions"),
        "gateway topics": metric(text, "tailrace_topics"),
        "drained gateway RSS, MiB": drained.memory_info().rss / 2**20,
        "client tasks": float(len(asyncio.all_tasks())),
        "Redis memory, MiB": int(memory["used_memory"]) / 2**20,
        "Redis clients": float(clients["connected_clients"]),
        "Redis keys": float(await made.redis.cli("DBSIZE")),
    }


class Soak:
    """The schedule, and the samples between its steps."""

    def __init__(self, made: Arena, seconds: float, seed: int, every: float) -> None:
        self.times: list[float] = []
        self.series: dict[str, list[float]] = {name: [] for name in BOUNDS}
        self._made = made
        self._seconds = seconds
        self._seed = seed
        self._every = every

    async def steps(self) -> AsyncIterator[Step]:
        """A mild fault, calm, a sample; until the time is over."""
        rng = random.Random(self._seed)
        began = time.monotonic()
        for number in itertools.count(1):
            yield Step((rng.choice(MILD),), f"{self._seed}-{number}", self._every)
            await self._sample(time.monotonic() - began)
            if time.monotonic() - began >= self._seconds:
                return

    async def _sample(self, at: float) -> None:
        taken = await sample(self._made)
        self.times.append(at)
        for name, value in taken.items():
            self.series[name].append(value)
        told = ", ".join(f"{name} {value:.1f}" for name, value in taken.items())
        print(f"{at:7.0f} s: {told}", flush=True)


async def run(seconds: float, seed: int, every: float) -> tuple[Soak, Result]:
    """One soak."""
    async with arena(redis={"appendfsync": "no", "auto-aof-rewrite-min-size": "8mb"}, load=LOAD) as made:
        soak = Soak(made, seconds, seed, every)
        return soak, await made.run(seed, soak.steps())


def as_markdown(soak: Soak, result: Result, seed: int) -> str:
    """The report."""
    counts = result.board.counts
    deliveries, connects = (
        sum(number for (_, _, measure), number in counts.items() if measure == wanted)
        for wanted in ("deliveries", "connects")
    )
    found = growths(soak.times, soak.series)
    told = (
        f"`make soak HOURS={soak.times[-1] / 3600:.2f} SEED={seed}` on {os.cpu_count()} shared cores: "
        f"{len(soak.times)} samples, {len(result.board.attempts)} events published, {deliveries} deliveries on eight "
        f"transports, {connects} connections, {len(result.steps)} mild faults, "
        f"**{len(result.violations)} violations of the judge**."
    )
    lines = [
        *("# Soak report", "", told, "", RULE, ""),
        "| Series | begin of the half | end | growth | bound | |",
        "|---|---|---|---|---|---|",
        *(
            f"| {each.name} | {each.start:.1f} | {each.end:.1f} | {each.grown:+.2f} | {each.bound:.2f} | "
            f"{'flat' if each.flat else '**grows**'} |"
            for each in found
        ),
        "",
        "The whole time, in twelve parts, medians:",
        "",
        f"| Series | {' | '.join(f'{share}/12' for share in range(1, 13))} |",
        f"|---|{'---|' * 12}",
        *(f"| {name} | {' | '.join(_parts(soak.times, values))} |" for name, values in soak.series.items()),
    ]
    lines += [f"* {violation}" for violation in result.violations[:50]]
    return "\n".join(lines) + "\n"


def _parts(times: Sequence[float], values: Sequence[float]) -> list[str]:
    parts: list[list[float]] = [[] for _ in range(12)]
    for at, value in zip(times, values, strict=True):
        parts[min(11, int(12 * at / times[-1]))].append(value)
    return [f"{statistics.median(part):.1f}" if part else "-" for part in parts]


def main() -> int:
    """0: nothing grew, nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=15.0, help="seconds of calm before a sample")
    parser.add_argument("--report", type=Path, help="file for the report; its samples are put beside it as .json")
    given = parser.parse_args()
    soak, result = asyncio.run(run(given.hours * 3600, given.seed, given.every))
    text = as_markdown(soak, result, given.seed)
    if given.report is not None:
        given.report.write_text(text)
        given.report.with_suffix(".json").write_text(json.dumps({"at": soak.times, **soak.series}) + "\n")
    print(text)
    grows = [each.name for each in growths(soak.times, soak.series) if not each.flat]
    return 1 if grows or result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
