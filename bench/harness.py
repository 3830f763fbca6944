"""What every benchmark shares: samples, histograms, interleaved comparisons, targets, the machine.

Rules of this file
1. Things that are compared take turns, round by round, in one run: the machine's moods then hit all of them.
2. A comparison is the median of the rounds' ratios, not the ratio of two medians of different moods.
3. A number stands beside its target, or beside the reason why it has none.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

__all__ = [
    "Contender",
    "Histogram",
    "Measure",
    "Report",
    "Sample",
    "difference",
    "interleave",
    "machine",
    "median",
    "number",
    "ratio",
    "say",
]

GROWTH = 1.05
"""A histogram's bucket n holds what took from GROWTH**n to GROWTH**(n + 1) microseconds."""

Sample: TypeAlias = Mapping[str, float]
Contender: TypeAlias = Callable[[], Awaitable[Sample]]


class Histogram:
    """Durations in buckets of 5 %: small as data, and percentiles that are right within 5 %."""

    def __init__(self, buckets: Sequence[int] = ()) -> None:
        self.buckets = list(buckets)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        micros = seconds * 1e6
        bucket = 0 if micros <= 1 else int(math.log(micros) / math.log(GROWTH))
        if bucket >= len(self.buckets):
            self.buckets += [0] * (bucket + 1 - len(self.buckets))
        self.buckets[bucket] += 1

    def merge(self, other: Histogram) -> None:
        """Count what another one counted."""
        longer = max(len(self.buckets), len(other.buckets))
        mine, theirs = (one + [0] * (longer - len(one)) for one in (self.buckets, other.buckets))
        self.buckets = [a + b for a, b in zip(mine, theirs, strict=True)]

    @property
    def count(self) -> int:
        """How many durations."""
        return sum(self.buckets)

    def percentile(self, percent: float) -> float:
        """The upper edge, in milliseconds, of the bucket in which `percent` of the durations have come."""
        wanted, seen = self.count * percent / 100, 0
        for bucket, n in enumerate(self.buckets):
            seen += n
            if n and seen >= wanted:
                return GROWTH ** (bucket + 1) / 1000
        return 0.0

    def as_data(self) -> dict[str, Any]:
        """For JSON: only the buckets that hold something."""
        return {
            "unit": "us",
            "growth": GROWTH,
            "count": self.count,
            "buckets": {str(i): n for i, n in enumerate(self.buckets) if n},
        }


@dataclass(frozen=True)
class Measure:
    """One number and what it should be."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    why: str = ""
    """What is known to make it miss its target; said only where it does."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: it has none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None

    @property
    def target(self) -> str:
        """The target as people read it."""
        if self.at_most is not None:
            return f"≤ {number(self.at_most)}"
        return f"≥ {number(self.at_least)}" if self.at_least is not None else ""


@dataclass
class Report:
    """Everything one benchmark found."""

    command: str
    title: str
    setting: dict[str, Any]
    """How it was measured: sizes, rates, rounds."""
    measures: list[Measure] = field(default_factory=list)
    rounds: dict[str, list[Sample]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    taken: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))

    @property
    def met(self) -> bool:
        """Whether no target was missed."""
        return all(measure.met is not False for measure in self.measures)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "command": self.command,
            "title": self.title,
            "taken": self.taken,
            "seconds": round(self.seconds, 1),
            "machine": machine(),
            "setting": self.setting,
            "measures": [
                {
                    "name": one.name,
                    "value": one.value,
                    "unit": one.unit,
                    "target": one.target,
                    "met": one.met,
                    "note": one.note,
                    "why": one.why if one.met is False else "",
                }
                for one in self.measures
            ],
            "rounds": {name: [dict(sample) for sample in samples] for name, samples in self.rounds.items()},
            "histograms": {name: histogram.as_data() for name, histogram in self.histograms.items()},
            "notes": self.notes,
        }


async def interleave(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Sample]]:
    """Let the contenders take turns; every second round in the opposite order."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders)[:: 1 if turn % 2 == 0 else -1]
        for name in order:
            sample = await contenders[name]()
            samples[name].append(sample)
            shown = ", ".join(f"{key} {number(value)}" for key, value in sample.items())
            say(f"  round {turn + 1}/{rounds}  {name}: {shown}")
    return samples


def ratio(samples: Mapping[str, Sequence[Sample]], name: str, other: str, key: str) -> float:
    """Median over the rounds of `name`'s number divided by `other`'s."""
    pairs = zip(samples[name], samples[other], strict=True)
    return statistics.median(mine[key] / theirs[key] for mine, theirs in pairs)


def difference(samples: Mapping[str, Sequence[Sample]], name: str, other: str, key: str) -> float:
    """Median over the rounds of `name`'s number minus `other`'s."""
    pairs = zip(samples[name], samples[other], strict=True)
    return statistics.median(mine[key] - theirs[key] for mine, theirs in pairs)


def median(samples: Sequence[Sample], key: str) -> float:
    """Median over the rounds."""
    return statistics.median(sample[key] for sample in samples)


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 1024 / 1024),
        "kernel": platform.release(),
        "system": next(
            (line.partition("=")[2].strip().strip('"') for line in _lines("/etc/os-release") if line[:7] == "PRETTY_"),
            platform.system(),
        ),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("tailrace", "uvicorn", "uvloop", "hiredis", "redis")},
        "commit": _commit(),
        "load": [round(one, 2) for one in os.getloadavg()],
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"
