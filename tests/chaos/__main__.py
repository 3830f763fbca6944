"""`python -m tests.chaos --seed S --minutes M [--faults a,b] [--report FOLDER]`: break it until it shows."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TextIO

from tests.chaos.arena import Result, arena
from tests.chaos.nemesis import FAULTS, Step, plan
from tests.chaos.report import as_markdown, dump


async def timed(seed: int, names: Sequence[str], seconds: float) -> AsyncIterator[Step]:
    """Steps until the time is over, each fault at least once."""
    end = time.monotonic() + seconds
    done: set[str] = set()
    for step in plan(seed, names):
        if time.monotonic() >= end and done >= set(names):
            return
        print(f"  {step}", flush=True)
        yield step
        done |= set(step.names)


async def run(seed: int, names: Sequence[str], seconds: float, sync: str, history: TextIO | None) -> Result:
    """One run of one seed."""
    print(f"seed {seed}, faults {','.join(names)}", flush=True)
    async with arena(redis={"appendfsync": sync}) as made:
        made.board.history = history
        return await made.run(seed, timed(seed, names, seconds))


def main() -> int:
    """0: nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--report", type=Path, help="folder for chaos.md and chaos.json")
    # `everysec` may lose what it had not written yet when an fsync takes long.
    parser.add_argument("--sync", default="no", choices=("no", "everysec", "always"), help="Redis' appendfsync")
    parser.add_argument("--history", type=argparse.FileType("w"), help="file for every operation, as JSON lines")
    given = parser.parse_args()
    names = [name for name in given.faults.split(",") if name]
    if unknown := set(names) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    result = asyncio.run(run(given.seed, names, given.minutes * 60, given.sync, given.history))
    runs = [(given.seed, result)]
    text = as_markdown(runs)
    if given.report is not None:
        given.report.mkdir(parents=True, exist_ok=True)
        (given.report / "chaos.md").write_text(text)
        (given.report / "chaos.json").write_text(dump(runs))
    print(text)
    if result.violations:
        print(f"again with: python -m tests.chaos --seed {given.seed} --faults {','.join(names)}", file=sys.stderr)
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
