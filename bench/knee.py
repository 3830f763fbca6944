"""`knee`: the highest rate of `load` at which nearly all deliveries are still quick.

In growing steps until one is not, then by halves between the best and the worst that is known.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable

from bench.harness import Measure, Report, number, say
from bench.load import Outcome, open_load
from bench.server import redis_version
from bench.stack import open_stack

__all__ = ["add_arguments", "find_knee", "run"]

QUICK_MS = 100.0
STEP = 1.5
HALVINGS = 3
LOWEST = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `knee`."""
    parser.add_argument("--clients", type=int, default=2_000, help="SSE connections, with a stream each (%(default)s)")
    parser.add_argument("--rate", type=int, default=10_000, help="events a second to begin with (%(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of one step (%(default)s)")
    parser.add_argument(
        "--longest", type=float, default=75.0, help="no step begins after so many seconds (%(default)s)"
    )


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    setting = {"clients": options.clients, "streams": options.clients, "seconds a step": options.seconds}
    report = Report("knee", f"Knee: the highest rate with P99 < {QUICK_MS:.0f} ms", setting)
    async with open_stack() as served, open_load(served, options.clients) as load:
        say(f"knee: {options.clients} clients, from {options.rate} events/s")
        steps: list[tuple[float, Outcome]] = []

        async def measure(rate: float) -> Outcome:
            outcome = await load.run(rate, options.seconds)
            steps.append((rate, outcome))
            return outcome

        rate = await find_knee(measure, options.rate, longest=options.longest)
        best = next((outcome for at, outcome in steps if at == rate), None)
        worse = min((at for at, _ in steps if at > rate), default=None)
        report.measures.append(Measure("events a second", rate, "/s", note="all streams together"))
        if best is not None:
            report.measures += [
                Measure("publish to client there, p50", best.heard.delays.percentile(50), "ms"),
                Measure("publish to client there, p99", best.heard.delays.percentile(99), "ms", at_most=QUICK_MS),
                *(Measure(f"{name}'s CPU there", share * 100, "% of a core") for name, share in best.cores.items()),
                Measure("lost, repeated or late records there", best.lost, at_most=0),
            ]
            report.histograms = {"publish to client": best.heard.delays}
        report.notes.append(
            f"the next step up that was too slow had {number(worse)}/s" if worse else "no step was too slow in the time"
        )
    report.rounds = {
        "steps": [
            {"rate": at, "p99_ms": one.heard.delays.percentile(99), "lost": one.lost, "load": one.load_average}
            for at, one in steps
        ]
    }
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


async def find_knee(measure: Callable[[float], Awaitable[Outcome]], rate: float, *, longest: float = 600.0) -> float:
    """The highest rate that is quick, within a few per cent; 0: none is. After `longest` seconds, what is known."""
    began = time.monotonic()
    good, bad = 0.0, 0.0
    halvings = 0
    while rate >= LOWEST and time.monotonic() - began < longest:
        outcome = await measure(rate)
        p99 = outcome.heard.delays.percentile(99)
        say(f"  {rate:,.0f} events/s: P99 {number(p99)} ms, {outcome.lost} lost, load {outcome.load_average:.1f}")
        if not outcome.lost and p99 < QUICK_MS:
            good = rate
        else:
            bad = rate
        if good and bad:
            if halvings == HALVINGS:
                break
            rate, halvings = (good + bad) / 2, halvings + 1
        else:
            rate = rate * STEP if good else rate / STEP
    return good
