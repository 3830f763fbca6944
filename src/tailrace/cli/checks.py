"""The start-up checks as a table: for `doctor`, and before `serve` and `dev`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tailrace.eventlog.checks import Finding

__all__ = ["print_findings"]

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}
_SIGNS = {"error": "✗", "warning": "!", "info": "·"}


def print_findings(findings: Sequence[Finding], *, to_stderr: bool = False) -> None:
    """A table on a terminal, one line per finding otherwise."""
    stream = sys.stderr if to_stderr else sys.stdout
    if not stream.isatty():
        for finding in findings:
            print(f"{finding.level}\t{finding.check}\t{finding.server}\t{finding.text}\t{finding.advice}", file=stream)
        return
    from tailrace.cli.console import err, out

    _table(err() if to_stderr else out(), findings)


def _table(console: Console, findings: Sequence[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for finding in findings:
        style = _STYLES[finding.level]
        advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(
            f"[{style}]{_SIGNS[finding.level]}[/]", f"[{style}]{finding.check}[/]", escape(finding.text) + advice
        )
    console.print(table, soft_wrap=False)
