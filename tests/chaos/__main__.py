"""`python -m tests.chaos --seed S --minutes M [--deliveries N] [--topology T] [--faults a,b]`: until it shows."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TextIO

from tests.chaos.arena import Arena, Result, arena
from tests.chaos.load import Load
from tests.chaos.nemesis import FAULTS, Step, plan
from tests.chaos.report import Goal, as_markdown, dump, total
from tests.chaos.topologies import TWO_MASTERS, ClusterArena, SentinelArena, cluster_arena, sentinel_arena

LARGE = Load(sets=2, more=18, batch=70, pause=0.12, rest=1.0, cuts=(0.02, 0.06))
"""What a million deliveries and more are made with."""


async def timed(made: Arena, seed: int, names: Sequence[str], seconds: float, goal: Goal) -> AsyncIterator[Step]:
    """Steps until the goal is reached and, without one, the time is over; each fault at least once.

    When only some cells are too thin, only their faults go on. Ctrl-C ends the steps, not the run: it is judged.
    """
    began, board = time.monotonic(), made.board
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asked.set)
    done: set[str] = set()
    for step in plan(seed, names, faults=made.faults):
        if asked.is_set():
            return
        late = time.monotonic() - began >= seconds
        thin = {each.partition(" ")[0] for each in goal.thin(board, names)}
        enough = total(board, "deliveries") >= goal.deliveries and total(board, "connects") >= goal.connects
        if done >= set(names) and ((late and not goal.deliveries) or (enough and not thin) or late):
            return
        if goal.deliveries and enough and not thin & set(step.names):
            continue
        if enough and thin:
            print(f"  too thin: {'; '.join(goal.thin(board, names))}", flush=True)
        at = time.monotonic() - began
        print(
            f"  {at:6.0f} s, {total(board, 'deliveries')} deliveries, {len(board.violations)} wrong: {step}", flush=True
        )
        yield step
        done |= set(step.names)


ARENAS: dict[str, Callable[..., AbstractAsyncContextManager[Arena]]] = {
    "standalone": arena,
    "sentinel": sentinel_arena,
    "cluster": cluster_arena,
}
KNOWN = {"standalone": FAULTS, "sentinel": SentinelArena.faults, "cluster": ClusterArena.faults}


async def run(
    seed: int, names: Sequence[str], seconds: float, sync: str, history: TextIO | None, goal: Goal, topology: str
) -> Result:
    """One run of one seed."""
    print(f"seed {seed}, faults {','.join(names)}", flush=True)
    load = LARGE if goal.deliveries >= 1_000_000 else None
    async with ARENAS[topology](redis={"appendfsync": sync}, load=load) as made:
        made.board.history = history
        return await made.run(seed, timed(made, seed, names, seconds, goal))


def main() -> int:
    """0: nothing was violated, and enough was tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--minutes", type=float, help="2, or with --deliveries at most 60")
    parser.add_argument("--deliveries", type=int, default=0, help="go on until so many, and enough in every cell")
    parser.add_argument("--topology", default="standalone", choices=KNOWN, help="where Redis runs")
    parser.add_argument("--faults", default="", help="some of those of the topology")
    parser.add_argument("--report", type=Path, help="folder for chaos.md and chaos.json")
    # `everysec` may lose what it had not written yet when an fsync takes long.
    parser.add_argument("--sync", default="no", choices=("no", "everysec", "always"), help="Redis' appendfsync")
    parser.add_argument("--history", type=argparse.FileType("w"), help="file for every operation, as JSON lines")
    given = parser.parse_args()
    known = KNOWN[given.topology]
    names = [name for name in given.faults.split(",") if name] or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    goal = Goal.of(given.deliveries)
    minutes = given.minutes or (60.0 if given.deliveries else 2.0)
    result = asyncio.run(run(given.seed, names, minutes * 60, given.sync, given.history, goal, given.topology))
    wanted = f" DELIVERIES={given.deliveries}" if given.deliveries else f" MINUTES={minutes:g}"
    text = as_markdown(given.seed, result, names, goal=goal, command=f"make chaos SEED={given.seed}{wanted}")
    if given.report is not None:
        given.report.mkdir(parents=True, exist_ok=True)
        (given.report / "chaos.md").write_text(text)
        (given.report / "chaos.json").write_text(dump(given.seed, result))
    print(text)
    wrong = result.kinds() - (set() if given.topology == "standalone" else TWO_MASTERS)
    if wrong:
        again = f"--seed {given.seed} --topology {given.topology} --faults {','.join(names)}"
        print(f"{', '.join(sorted(wrong))}; again with: python -m tests.chaos {again}", file=sys.stderr)
    return 1 if wrong or goal.missing(result.board, names) else 0


if __name__ == "__main__":
    sys.exit(main())
