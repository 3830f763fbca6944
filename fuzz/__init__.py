"""Fuzzing: one file per target, each with its invariant in the first line and one `check(data)`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CORPUS", "TARGETS"]

TARGETS = ("access", "client", "codec", "commands", "cursor", "entries", "frames", "names", "push", "sse", "tokens")
CORPUS = Path(__file__).parent / "corpus"
"""A folder per target with inputs to begin with, and those that once broke something."""
