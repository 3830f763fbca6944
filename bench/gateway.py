"""The gateway of a benchmark: settings from the environment, its address on the first line of its output.

With BENCH_COLLECTOR in the environment it keeps the pauses of Python's garbage collector, and answers each line on its
input with those since the last one. "ours" collects as `tailrace serve` does, "frozen" with Python's own thresholds but
never looks at what was there before, "python" as any Python program.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time

from bench.harness import Histogram
from tailrace.config import load_settings
from tailrace.observe import configure_logging
from tailrace.server import run, serve

PYTHON_THRESHOLDS = gc.get_threshold()


def main() -> int:
    """Serve until a signal comes."""
    settings = load_settings()
    configure_logging(settings)
    return run(lambda: serve(settings, on_started=_started))


def _started(address: str) -> None:
    if collector := os.environ.get("BENCH_COLLECTOR"):
        _watch(collector)
    print(address, flush=True)


def _watch(collector: str) -> None:
    if collector != "ours":
        gc.set_threshold(*PYTHON_THRESHOLDS)
    if collector == "python":
        gc.unfreeze()
    pauses = Pauses()
    gc.callbacks.append(pauses)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), pauses.tell)


class Pauses:
    """How long and how often the collector held everything up."""

    def __init__(self) -> None:
        self._began = 0.0
        self._forget()

    def _forget(self) -> None:
        self._histogram = Histogram()
        self._seconds = self._longest = 0.0
        self._full = 0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
            return
        seconds = time.perf_counter() - self._began
        self._histogram.add(seconds)
        self._seconds += seconds
        self._longest = max(self._longest, seconds)
        self._full += info["generation"] == 2

    def tell(self) -> None:
        """One line of JSON, then begin anew."""
        if not os.read(sys.stdin.fileno(), 1_024):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            return
        said = {"seconds": self._seconds, "longest": self._longest, "full": self._full}
        print(json.dumps({**said, "buckets": self._histogram.buckets}), flush=True)
        self._forget()


if __name__ == "__main__":
    sys.exit(main())
