"""The cyclic garbage collector of a process that serves."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["quick_start", "rare_collections"]

THRESHOLDS = (20_000, 10, 10)
"""Containers made and not freed before the collector looks at the young ones; then how often at the older ones."""

STARTING = (100_000, 50, 50)
"""What importing makes stays: looking at it again and again is a tenth of the time that `serve` takes to start."""


def quick_start() -> None:
    """Let a process of our own start without being looked at all the time."""
    gc.set_threshold(*STARTING)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Let the cyclic collector look less often, and never at what was there before.

    A page of a thousand records makes some thousand objects, nearly all freed by their counts alone: with Python's own
    thresholds the collector runs many times for each page, a third of the CPU of a storm (`bench storm`).
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
