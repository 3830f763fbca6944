"""Pictures and tables that are made from results show what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.harness import Histogram
from bench.numbered import without_number
from bench.plot import picture
from bench.tuning import BEGIN, END, PAGE, refreshed, table

from tailrace.eventlog.redis.scripts import load

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def seconds(*durations: float) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


def test_a_picture_has_two_lines_for_each_histogram_that_holds_something() -> None:
    drawn = picture("a & b", {"one": seconds(0.001, 0.002), "<two>": seconds(0.5), "none": Histogram()})

    tree = ElementTree.fromstring(drawn)
    assert len(tree.findall(f".//{SVG}polyline")) == 4
    texts = [text.text or "" for text in tree.iter(f"{SVG}text")]
    assert any(text.startswith("<two>: 1 measured") for text in texts)
    assert not any("none" in text for text in texts)


@pytest.mark.parametrize("durations", [(1e-9,), (0.001,), (1e-6, 100.0)])
def test_every_point_of_a_picture_is_inside_of_it(durations: tuple[float, ...]) -> None:
    tree = ElementTree.fromstring(picture("x", {"one": seconds(*durations)}))

    for line in tree.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 420
            assert 0 <= y <= 240


def test_nothing_measured_is_no_picture() -> None:
    assert picture("x", {"none": Histogram()}) == ""


def test_the_table_of_redis_settings_is_what_was_measured() -> None:
    data = json.loads((ROOT / "bench" / "results" / "settings.json").read_text())

    page = PAGE.read_text()

    assert BEGIN + table(data) + END in page, "write it again: python -m bench settings --write"
    assert refreshed(page, data) == page


def test_the_script_without_its_number_knows_no_producer_in_its_short_way() -> None:
    text = without_number(load("append").text.decode())

    short = text[text.index("local function append_next") : text.index("local rest = {}")]
    assert "producer" not in short
    assert "own" not in short


def test_a_script_that_has_changed_is_not_measured_as_if_it_had_not() -> None:
    with pytest.raises(ValueError, match="not once"):
        without_number("return 1")
