"""Reports as a table on the terminal, as JSON with all rounds and histograms, as pictures, and as RESULTS.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import plot, tuning
from bench.harness import Report, number

__all__ = ["show", "write"]

FOLDER = Path(__file__).parent
DATA = FOLDER / "results"
UNEXPLAINED = "see PROFILES.md"
VERDICT = {True: "met", False: "MISSED", None: ""}


def show(report: Report) -> None:
    """Print a report."""
    print(f"\n{report.title}")
    print(f"  {_pairs(report.setting)}")
    rows = [
        (one.name, f"{number(one.value)} {one.unit}".strip(), one.target, VERDICT[one.met], one.note)
        for one in report.measures
    ]
    for line in _columns([("", "measured", "target", "", ""), *rows]):
        print(f"  {line}")
    for note in report.notes:
        print(f"  note: {note}")
    print(f"  took {report.seconds:.0f} s")


def write(report: Report) -> Path:
    """Keep a report's data, and write RESULTS.md anew from all that is kept."""
    DATA.mkdir(exist_ok=True)
    data = report.as_data()
    (DATA / f"{report.command}.json").write_text(json.dumps(data, indent=1) + "\n")
    picture = DATA / f"{report.command}.svg"
    picture.unlink(missing_ok=True)
    if drawn := plot.picture(report.title, report.histograms):
        picture.write_text(drawn)
    if report.command == "settings":
        tuning.PAGE.write_text(tuning.refreshed(tuning.PAGE.read_text(), data))
    kept = [json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))]
    path = FOLDER / "RESULTS.md"
    path.write_text("\n".join(_page(kept)))
    return path


def _page(kept: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    yield "# Results"
    yield ""
    yield "Written by `python -m bench all --write`; docs/benchmarks.md says how it is measured. All rounds and"
    yield "histograms are in `bench/results/`, what profiles show in [PROFILES.md](PROFILES.md)."
    for data in kept:
        machine = data["machine"]
        packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        yield ""
        yield f"## {data['title']}"
        yield ""
        yield "| | measured | target | |"
        yield "|---|---:|---:|---|"
        for one in data["measures"]:
            name = f"{one['name']} ({one['note']})" if one["note"] else one["name"]
            measured = f"{number(one['value'])} {one['unit']}".strip()
            verdict = VERDICT[one["met"]]
            if one["met"] is False:
                verdict += f": {one.get('why') or UNEXPLAINED}"
            yield f"| {name} | {measured} | {one['target']} | {verdict} |"
        yield ""
        if (DATA / f"{data['command']}.svg").exists():
            yield f"![{data['title']}](results/{data['command']}.svg)"
            yield ""
        yield f"{_pairs(data['setting'])}. {data['taken']}, {data['seconds']:.0f} s, commit {machine['commit']}."
        yield f"{machine['cores']} x {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']},"
        yield f"kernel {machine['kernel']}, Python {machine['python']}, {packages}; load {machine['load'][0]}."
        for note in data["notes"]:
            yield f"* {note}"
    yield ""


def _pairs(facts: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {value}" for name, value in facts.items())


def _columns(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if i in (1, 2) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
