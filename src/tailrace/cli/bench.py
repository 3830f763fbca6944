"""`tailrace bench`: the benchmarks of a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from tailrace.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(
    help="Run the benchmarks (in a checkout of the repository only).", no_args_is_help=True, rich_markup_mode="markdown"
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help-here"]}


@app.command("fanout", context_settings=_PASS_ON)
def fanout(context: typer.Context) -> None:
    """One stream to many SSE clients through Redis. Options go on to the benchmark; try `--help`."""
    _run("fanout", context.args)


@app.command("publish", context_settings=_PASS_ON)
def publish(context: typer.Context) -> None:
    """Awaited and concurrent publishing. Options go on to the benchmark; try `--help`."""
    _run("publish", context.args)


@app.command("load", context_settings=_PASS_ON)
def load(context: typer.Context) -> None:
    """Many connections with a stream each, at a fixed rate. Options go on to the benchmark; try `--help`."""
    _run("load", context.args)


@app.command("storm", context_settings=_PASS_ON)
def storm(context: typer.Context) -> None:
    """Everybody comes back at once. Options go on to the benchmark; try `--help`."""
    _run("storm", context.args)


@app.command("resume", context_settings=_PASS_ON)
def resume(context: typer.Context) -> None:
    """Anywhere into a long stream, and all of it. Options go on to the benchmark; try `--help`."""
    _run("resume", context.args)


@app.command("memory", context_settings=_PASS_ON)
def memory(context: typer.Context) -> None:
    """Idle connections and streams in memory; how long starting takes. Options go on; try `--help`."""
    _run("memory", context.args)


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
