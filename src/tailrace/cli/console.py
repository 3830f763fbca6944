"""What commands print: results to stdout, words about them to stderr; rich on a terminal, plain when piped."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer

from tailrace.cli.exits import ExitCode, exit_code_of
from tailrace.errors import ConfigError, LogUnavailable, TailraceError, Unauthorized

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["complain", "err", "guarded", "on_terminal", "out", "run", "say", "show_table"]

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def out() -> Console:
    """The terminal's stdout. Only for what is meant for eyes: it wraps and colours."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@functools.cache
def err() -> Console:
    """The terminal's stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def say(text: str, *, style: str = "dim") -> None:
    """A word to the person at the terminal; to a script, a plain line on stderr."""
    if sys.stderr.isatty():
        err().print(text, style=style, markup=False)
    else:
        print(f"tailrace: {text}", file=sys.stderr, flush=True)


def complain(text: str, hint: str | None = None) -> None:
    """Say what went wrong, and what would help."""
    if sys.stderr.isatty():
        err().print("tailrace:", style="bold red", end=" ")
        err().print(text, markup=False)
        if hint:
            err().print(f"  {hint}", style="dim", markup=False)
    else:
        print(f"tailrace: {text}" + (f" ({hint})" if hint else ""), file=sys.stderr, flush=True)


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Turn expected errors into a message and an exit code; no traceback."""

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            try:
                return command(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except TailraceError as exc:
            complain(str(exc), _hint(exc))
            raise typer.Exit(exit_code_of(exc)) from None
        except BrokenPipeError:
            _stdout_to_nowhere()
            raise typer.Exit(ExitCode.BROKEN_PIPE) from None
        except OSError as exc:
            # A full disk, a file that cannot be written; what the network says is a TailraceError.
            _stdout_to_nowhere()
            complain(f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror or str(exc))
            raise typer.Exit(ExitCode.FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    return guard


def show_table(table: Table) -> None:
    """Print a table of facts. Where the terminal is too narrow its lines go on in the next one: ids stay whole."""
    from rich.console import Console

    for column in table.columns:
        column.no_wrap = True
    wide = Console(highlight=False, width=10_000)
    wide.width = wide.measure(table).maximum
    wide.print(table)


def _stdout_to_nowhere() -> None:
    """Python flushes stdout once more at exit, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    import asyncio
    import logging

    # Without a handler Python prints warnings of the library in between; what matters here is an error, and told.
    logging.getLogger("tailrace").addHandler(logging.NullHandler())
    return asyncio.run(main)


def _hint(error: TailraceError) -> str | None:
    if isinstance(error, Unauthorized):
        return "give --token, set TAILRACE_TOKEN, or mint one with `tailrace token`"
    if isinstance(error, LogUnavailable) and "cannot be reached" in error.detail:
        return "is the server running? `tailrace dev` starts one"
    if isinstance(error, ConfigError):
        return None
    problems = {name: value for name, value in error.data.items() if name not in ("status", "appended")}
    return ", ".join(f"{name}={value}" for name, value in problems.items()) or None
