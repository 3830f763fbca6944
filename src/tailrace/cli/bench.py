"""`tailrace bench`: the benchmarks of a checkout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from tailrace.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(
    help="Run the benchmarks (in a checkout of the repository only).", no_args_is_help=True, rich_markup_mode="markdown"
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help-here"]}


_ROWS = {
    "fanout": "One stream to 1 000 SSE clients through Redis.",
    "fanout-2000": "The same to 2 000.",
    "fanout-ws": "One stream to 1 000 WebSocket clients.",
    "fanout-ws-2000": "The same to 2 000.",
    "slow": "What slow and stalled readers do to the others.",
    "publish": "Awaited and concurrent publishing.",
    "append": "Batches, sizes, and what idempotency costs Redis.",
    "runs": "An event store, and how soon its viewers have an event.",
    "load": "Many connections with a stream each, at a fixed rate.",
    "knee": "The highest rate that is still quick.",
    "storm": "Everybody comes back at once.",
    "resume": "Anywhere into a long stream, and all of it.",
    "memory": "Idle connections and streams in memory; how long starting takes.",
    "gc": "The garbage collector's pauses under load.",
    "settings": "What settings of Redis do.",
    "profile": "Where the gateway's time goes (needs py-spy).",
    "migrate": "Pub/Sub against streams, for who moves from the one to the other.",
}


def _passing_on(name: str) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        _run(name, context.args)

    return run


for _name, _words in _ROWS.items():
    app.command(_name, help=f"{_words} Options go on to the benchmark; try `--help`.", context_settings=_PASS_ON)(
        _passing_on(_name)
    )


def _run(name: str, arguments: list[str]) -> None:
    from tailrace.cli.console import guarded

    guarded(_replace)(name, arguments)


def _replace(name: str, arguments: list[str]) -> None:
    root = checkout()
    if root is None:
        raise ConfigError("the benchmarks are in the repository; this is an installed package, not a checkout")
    os.chdir(root)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bench", name, *arguments])  # noqa: S606 - our own module


def checkout() -> Path | None:
    """The folder that holds `bench/`, if this package runs from a checkout."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "bench" / "__main__.py").is_file() and (root / "pyproject.toml").is_file() else None
