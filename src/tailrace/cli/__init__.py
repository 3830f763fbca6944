"""The commands. `main` is the entry point; everything heavy is imported by the command that needs it."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    from tailrace.collector import quick_start

    quick_start()
    from tailrace.cli.app import app

    app(prog_name="tailrace")
