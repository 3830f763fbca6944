"""`python -m bench [COMMAND|all]`: measure, print the results beside their targets."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from bench import (
    append,
    collector,
    fanout,
    knee,
    load,
    memory,
    migrate,
    profiling,
    publish,
    resume,
    runs,
    settings,
    slow,
    storm,
)
from bench.harness import Report
from bench.process import Missing
from bench.report import show, write


class Row(NamedTuple):
    """One command: a module, and what is otherwise by default than it says itself."""

    module: ModuleType
    defaults: Mapping[str, object] = {}


COMMANDS: dict[str, Row] = {
    "fanout": Row(fanout),
    "fanout-2000": Row(fanout, {"clients": 2_000, "records": 100, "rate": 25}),
    "fanout-ws": Row(fanout, {"websocket": True}),
    "fanout-ws-2000": Row(fanout, {"websocket": True, "clients": 2_000, "records": 100, "rate": 25}),
    "slow": Row(slow),
    "publish": Row(publish),
    "append": Row(append),
    "runs": Row(runs),
    "load": Row(load),
    "knee": Row(knee),
    "storm": Row(storm),
    "resume": Row(resume),
    "memory": Row(memory),
    "gc": Row(collector),
    "settings": Row(settings),
    "migrate": Row(migrate),
}
EXIT_MISSED = 1
EXIT_MISSING = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmarks. Exit code 0; 1 with --strict when a target was missed; 4 when something is not installed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything that was started is ended
    options = _parser().parse_args(argv)
    if options.command == "profile":
        return _profile(options)
    names = list(COMMANDS) if options.command in (None, "all") else [options.command]
    defaults = _parser()
    met = True
    for name in names:
        chosen = options if name == options.command else defaults.parse_args([name])
        try:
            report = _run(name, chosen)
        except Missing as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            return EXIT_MISSING
        show(report)
        met = met and report.met
        if options.write:
            print(f"  kept in {write(report)}")
    return 0 if met or not options.strict else EXIT_MISSED


def _run(name: str, options: argparse.Namespace) -> Report:
    gc.collect()
    gc.freeze()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report: Report = runner.run(COMMANDS[name].module.run(options))
    return report


def _profile(options: argparse.Namespace) -> int:
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(profiling.profile(options))
    except Missing as exc:
        print(f"profile: {exc}", file=sys.stderr)
        return EXIT_MISSING
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks of tailrace; see docs/benchmarks.md."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--write", action="store_true", help="keep the results in bench/RESULTS.md and bench/results/")
    common.add_argument("--strict", action="store_true", help="exit with 1 when a target was missed")
    parser.set_defaults(write=False, strict=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, defaults) in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0].partition(": ")[2]
        summary += "".join(f", {key} {value}" for key, value in defaults.items())
        command = commands.add_parser(name, help=summary, description=module.__doc__, parents=[common])
        module.add_arguments(command)
        command.set_defaults(**defaults)
    profiler = commands.add_parser("profile", help="where the gateway's time goes", description=profiling.__doc__)
    profiling.add_arguments(profiler)
    commands.add_parser("all", help="all of them, as they are by default", parents=[common])
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
