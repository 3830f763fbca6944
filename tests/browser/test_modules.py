"""The page's pure modules, in the browser that runs them."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.browser.conftest import OpenPage, Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def page(open_page: OpenPage, site: Site) -> Page:
    """A tab at the site's address, so that its modules can be imported."""
    live = await open_page()
    await live.page.goto(f"{site.url}/")
    return live.page


async def test_chain_finds_what_is_missing_and_what_is_repeated(page: Page) -> None:
    script = """async steps => {
        const { Chain } = await import("/chain.js");
        const chain = new Chain();
        const verdicts = [];
        for (const step of steps) {
            if (step.opened) chain.opened(step.opened);
            else if (step.gap) chain.gap(step.gap);
            else verdicts.push(chain.take(step));
        }
        const { records, missing, duplicate, announced, foreign } = chain;
        return { verdicts, counts: [records, missing, duplicate, announced, foreign] };
    }"""

    async def judge(*steps: dict[str, Any]) -> Any:
        return await page.evaluate(script, list(steps))

    first, second, fourth = record("5-1", "0-0"), record("5-2", "5-1"), record("9-4", "8-3")
    assert await judge({"opened": "0-0"}, first, second) == {"verdicts": ["next"] * 2, "counts": [2, 0, 0, 0, 0]}
    assert (await judge({"opened": "0-0"}, second))["verdicts"] == ["hole"]
    assert (await judge(first, second, second))["verdicts"] == ["next", "next", "duplicate"]
    assert await judge(first, second, fourth) == {"verdicts": ["next", "next", "hole"], "counts": [3, 1, 0, 0, 0]}
    gap = {"gap": {"missed": 1, "reason": "deleted"}}
    assert await judge(first, second, gap, fourth) == {"verdicts": ["next"] * 3, "counts": [3, 0, 0, 1, 0]}
    reset = {"gap": {"missed": None, "reason": "reset"}}
    assert (await judge(fourth, reset, first))["verdicts"] == ["next", "next"]
    foreign = record("6-0", None)
    assert (await judge(first, second, foreign, record("7-3", "5-2")))["verdicts"] == [
        "next",
        "next",
        "foreign",
        "next",
    ]
    large = record("18446744073709551615-18446744073709551615", "18446744073709551615-18446744073709551614")
    assert (await judge({"opened": large["prev"]}, large))["verdicts"] == ["next"]


def record(id_: str, prev: str | None) -> dict[str, Any]:
    return {"id": id_, "prev": prev}


ANSI = """async ([text, style]) => {
    const { parseAnsi, PLAIN } = await import("/ansi.js");
    const { pieces } = parseAnsi(text, style ?? PLAIN);
    return pieces.map(({ text, style }) => [text, Object.fromEntries(
        Object.entries(style).filter(([, value]) => value !== null && value !== false))]);
}"""


TERMINAL: list[tuple[str, list[Any]]] = [
    ("plain", [["plain", {}]]),
    ("\x1b[31mred\x1b[0m not", [["red", {"fg": 1}], [" not", {}]]),
    (
        "\x1b[1;4;92;101mall\x1b[22;24;39;49mnone",
        [["all", {"bold": True, "underline": True, "fg": 10, "bg": 9}], ["none", {}]],
    ),
    ("\x1b[38;5;9mx\x1b[48;5;196my", [["x", {"fg": 9}], ["y", {"fg": 9, "bg": "rgb(255 0 0)"}]]),
    ("\x1b[38;2;1;2;3mx", [["x", {"fg": "rgb(1 2 3)"}]]),
    ("\x1b[38;2;1;2;999mx\x1b[38;5mx\x1b[38mx", [["xxx", {}]]),
    ("a\x1b[2J\x1b[10;10Hb\x1b[?25lc", [["abc", {}]]),
    ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c\x1b]8;;\x1b\\d", [["abcd", {}]]),
    ("a\x00b\x08c\x7f", [["a\u2400b\u2408c\u2421", {}]]),
    ("\x1b[31", [["31", {}]]),
    ("\x1b]unterminated", []),
    ("\x1b", []),
]


async def test_terminal_sequences_become_styled_text(page: Page) -> None:
    found = [(text, await page.evaluate(ANSI, [text, None])) for text, _ in TERMINAL]

    assert found == TERMINAL


async def test_pieces_of_a_line_are_bounded(page: Page) -> None:
    pieces = await page.evaluate(ANSI, ["".join(f"\x1b[{31 + n % 2}mx" for n in range(50_000)), None])

    assert len(pieces) <= 501
    assert sum(len(text) for text, _ in pieces) == 50_000


async def test_close_codes_decide_by_their_range(page: Page) -> None:
    script = """async codes => {
        const { policyOf } = await import("/session.js");
        return codes.map(policyOf);
    }"""

    answers = await page.evaluate(script, [4000, 4002, 4003, 4499, 4500, 4505, 4506, 4507, 4999, 1006])

    assert answers == [
        "return",
        "renew",
        "return",
        "return",
        "stay-away",
        "stay-away",
        "end",
        "end",
        "stay-away",
        "return",
    ]


async def test_waits_grow_are_jittered_and_never_shorter_than_asked(page: Page) -> None:
    script = """async () => {
        const { waitBefore } = await import("/session.js");
        return [waitBefore(0, null, () => 0), waitBefore(0, null, () => 1), waitBefore(3, null, () => 1),
                waitBefore(99, null, () => 1), waitBefore(0, 7, () => 0)];
    }"""

    assert await page.evaluate(script) == [250, 500, 4_000, 30_000, 7_250]


async def test_history_is_bounded_in_items_and_in_size(page: Page) -> None:
    script = """async () => {
        const { History, MAX_ITEMS, MAX_SIZE } = await import("/history.js");
        const fill = (count, size) => {
            const history = new History();
            for (let n = 0; n < count; n += 1) {
                history.addRecord({ type: "t" + n, id: "1-" + n, data: n }, size, "next");
            }
            return [history.items.length, history.dropped, history.types.size];
        };
        return [fill(MAX_ITEMS + 500, 100), fill(100, MAX_SIZE / 10), fill(3, MAX_SIZE * 2)];
    }"""

    assert await page.evaluate(script) == [[2_000, 500, 201], [10, 90, 100], [1, 2, 3]]


async def test_records_of_a_process_are_described(page: Page) -> None:
    script = """async records => {
        const { describeProcess } = await import("/process.js");
        return records.map(([type, data]) => describeProcess({ type, data }));
    }"""
    records: list[tuple[str, Any]] = [
        ("run.started", {"argv": ["sh", "-c", "it's"], "pid": 7, "host": "a"}),
        ("run.output", {"stream": "stderr", "text": "aGkg/w==", "encoding": "base64", "partial": True}),
        ("run.exited", {"exit_code": 143, "signal": "SIGTERM", "seconds": 75.0, "lines": 3}),
        ("run.exited", {"exit_code": 0, "signal": None, "seconds": 0.5, "lines": 3}),
        ("run.started", {"kind": "report", "title": "May", "epoch": 1}),
        ("run.completed", {"status": "completed", "started_at": 1_000, "ended_at": 2_500, "result": {"pages": 3}}),
        ("run.failed", {"status": "failed", "started_at": None, "ended_at": 2_500, "error": "no disk"}),
        ("run.output", {"stream": "stdout", "text": 7}),
        ("run.started", {"epoch": 1}),
        ("run.failed", {"attempt": 1}),
        ("note", {"text": "x"}),
        ("run.output", None),
    ]

    started, line, killed, good, titled, completed, failed, *others = await page.evaluate(script, records)

    assert started["command"] == "sh -c 'it'\\''s'"
    assert (line["fd"], line["text"], line["marks"]) == ("stderr", "hi \ufffd", ["not UTF-8", "no line end"])
    assert (killed["headline"], killed["ok"]) == ("ended by SIGTERM after 1 min 15 s", False)
    assert (good["headline"], good["ok"]) == ("exited with 0 after 0.50 s", True)
    assert (titled["command"], titled["facts"]) == ("May", [["kind", "report"]])
    assert (completed["headline"], completed["ok"]) == ("completed after 1.50 s", True)
    assert completed["facts"] == [["result", '{"pages":3}']]
    assert (failed["headline"], failed["ok"]) == ("failed: no disk", False)
    assert others == [None] * 5
