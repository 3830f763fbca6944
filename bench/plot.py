"""Histograms as small SVG pictures: how often each duration was seen, and the durations by percentile.

Rules of this file
1. Both axes of time are logarithmic, and so is the one of percentiles: 90, 99 and 99.9 are equally far apart.
2. A picture needs nothing but itself: no script, no font, no style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from bench.harness import GROWTH, Histogram, number

__all__ = ["picture"]

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 34
COLOURS = ("#1b6ca8", "#d1495b", "#3b8132", "#8a5a9e", "#c77d15", "#4a4a4a")
PERCENTILES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
LEGEND_LINE = 15
Point = tuple[float, float]


def picture(title: str, histograms: Mapping[str, Histogram]) -> str:
    """An SVG of those that hold something; empty when none does."""
    shown = {name: one for name, one in histograms.items() if one.count}
    if not shown:
        return ""
    scale = _Scale(shown.values())
    height = HEIGHT + 8 + LEGEND_LINE * len(shown)
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{height}" '
                f'viewBox="0 0 {2 * WIDTH} {height}" font-family="sans-serif" font-size="11">'
            ),
            f"<title>{escape(title)}</title>",
            f'<rect width="{2 * WIDTH}" height="{height}" fill="#ffffff"/>',
            *_counts(shown, scale),
            f'<g transform="translate({WIDTH} 0)">',
            *_percentiles(shown, scale),
            "</g>",
            *_legend(shown),
            "</svg>",
            "",
        ]
    )


class _Scale:
    """The decades of milliseconds that all histograms together take."""

    def __init__(self, histograms: Iterable[Histogram]) -> None:
        used = [bucket for one in histograms for bucket, count in enumerate(one.buckets) if count]
        self.low = math.floor(math.log10(_edge(min(used))))
        self.high = max(self.low + 1, math.ceil(math.log10(_edge(max(used) + 1))))

    def share(self, ms: float) -> float:
        """Where a duration is, from 0 to 1."""
        return min(1.0, max(0.0, (math.log10(ms) - self.low) / (self.high - self.low)))

    @property
    def ticks(self) -> list[float]:
        """Every power of ten."""
        return [10.0**exponent for exponent in range(self.low, self.high + 1)]


def _edge(bucket: int) -> float:
    return float(GROWTH**bucket / 1_000)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _counts(shown: Mapping[str, Histogram], scale: _Scale) -> Iterable[str]:
    """How often, each histogram in shares of its own fullest bucket."""
    yield _text(LEFT, 16, "how often (of the most frequent)")
    yield from _frame([(_x(scale.share(ms)), f"{number(ms)} ms") for ms in scale.ticks], [(_y(0), "0"), (_y(1), "1")])
    for colour, one in zip(_colours(shown), shown.values(), strict=True):
        most = max(one.buckets)
        used = [bucket for bucket, count in enumerate(one.buckets) if count]
        points: list[Point] = [(_x(scale.share(_edge(used[0]))), _y(0))]
        for bucket in range(used[0], used[-1] + 1):
            height = _y(one.buckets[bucket] / most)
            points += [(_x(scale.share(_edge(bucket))), height), (_x(scale.share(_edge(bucket + 1))), height)]
        points.append((points[-1][0], _y(0)))
        yield _line(points, colour)


def _percentiles(shown: Mapping[str, Histogram], scale: _Scale) -> Iterable[str]:
    yield _text(LEFT, 16, "by percentile")
    nines = math.log10(1 / (1 - PERCENTILES[-1] / 100))
    across = {percent: _x(math.log10(1 / (1 - percent / 100)) / nines) for percent in PERCENTILES}
    yield from _frame(
        [(x, f"{percent:g}") for percent, x in across.items()],
        [(_y(scale.share(ms)), f"{number(ms)} ms") for ms in scale.ticks],
    )
    for colour, one in zip(_colours(shown), shown.values(), strict=True):
        seen = 0
        points: list[Point] = []
        for bucket, count in enumerate(one.buckets):
            if count:
                seen += count
                left = max(1 - seen / one.count, 1 - PERCENTILES[-1] / 100)
                points.append((_x(math.log10(1 / left) / nines), _y(scale.share(_edge(bucket + 1)))))
        yield _line([(_x(0), points[0][1]), *points], colour)


def _frame(across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]]) -> Iterable[str]:
    for x, name in across:
        yield f'<path d="M{x:.1f} {_y(0):.1f}V{_y(1):.1f}" stroke="#dddddd" fill="none"/>'
        yield _text(x, HEIGHT - BOTTOM + 15, name, "middle")
    for y, name in up:
        yield f'<path d="M{_x(0):.1f} {y:.1f}H{_x(1):.1f}" stroke="#dddddd" fill="none"/>'
        yield _text(LEFT - 5, y + 4, name, "end")


def _legend(shown: Mapping[str, Histogram]) -> Iterable[str]:
    for row, (colour, (name, one)) in enumerate(zip(_colours(shown), shown.items(), strict=True)):
        y = HEIGHT + 8 + row * LEGEND_LINE
        yield f'<rect x="{LEFT}" y="{y - 8}" width="18" height="4" fill="{colour}"/>'
        middle, tail = number(one.percentile(50)), number(one.percentile(99))
        yield _text(LEFT + 24, y - 2, f"{name}: {one.count} measured, p50 {middle} ms, p99 {tail} ms")


def _colours(shown: Mapping[str, Histogram]) -> list[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(len(shown))]


def _line(points: Sequence[Point], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333333">{escape(text)}</text>'
