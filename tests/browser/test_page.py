"""The live page in Chromium: what a newcomer sees."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tests.browser.conftest import LivePage, OpenPage, Site, open_site
from tests.support.tokens import token
from tests.support.wait import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

RUN = StreamName.parse("run:1")


async def publish(site: Site, *datas: Any, type_: str = "note", stream: StreamName = RUN) -> list[str]:
    """Append events and answer their ids."""
    return [str(one.id) for one in await site.log.append(stream, [Event(type_, data) for data in datas])]


async def watching(open_page: OpenPage, site: Site, auth: str, **options: Any) -> LivePage:
    """A page that is live on the run."""
    live = await open_page(**options)
    await live.open(site.url, RUN, auth=auth)
    await live.wait_state("live")
    return live


async def test_records_appear_live(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)

    ids = await publish(site, {"n": 1}, {"n": 2}, "three")

    await live.wait_ids(ids)
    texts = [row.text for row in await live.rows()]
    assert '{"n":1}' in texts[0]
    assert "three" in texts[2]
    assert await live.page.text_content("#cursor") == ids[-1]


async def test_token_leaves_the_address_bar(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)

    assert auth not in live.page.url
    assert live.page.url.endswith("#stream=run:1&from=0")
    assert not any(auth in each for each in live.requests)


async def test_refresh_restores_history(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    ids = await publish(site, *range(20))
    await live.wait_ids(ids)

    await live.page.reload()

    await live.wait_ids(ids)
    ids += await publish(site, "after")
    await live.wait_ids(ids)


async def test_cut_and_resume_lose_and_repeat_nothing(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    ids = await publish(site, "before")
    await live.wait_ids(ids)

    await live.page.click("#cut")
    await live.wait_state("cut")
    ids += await publish(site, *range(50))
    assert len(await live.ids()) == 1
    await live.page.click("#resume")

    await live.wait_ids(ids)
    await live.wait_state("live")
    notes = [row.text for row in await live.rows() if row.kind == "note"]
    assert notes[0].startswith("Cut here")
    assert notes[1].startswith("Resumed")


async def test_published_in_the_page_arrives_in_the_page(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)

    await live.page.fill("#publish-type", "order.paid")
    await live.page.fill("#publish-data", '{"amount": 12.50}')
    await live.page.press("#publish-data", "Enter")

    await eventually(live.ids)
    [row] = [row for row in await live.rows() if row.id]
    assert "order.paid" in row.text
    assert await live.page.text_content("#publish-answer") == f"stored as {row.id}"


async def test_refused_publish_says_why(open_page: OpenPage, site: Site) -> None:
    live = await watching(open_page, site, token("eve", read=["run:*"]))

    await live.page.fill("#publish-data", "hello")
    await live.page.click("#composer button")

    async def answered() -> bool:
        return (await live.page.text_content("#publish-answer") or "").startswith("FORBIDDEN")

    await eventually(answered)


async def test_finished_stream_ends_the_watching(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    ids = await publish(site, "last words")

    await site.log.close(RUN)

    await live.wait_state("ended")
    await live.wait_ids(ids)
    assert live.opened == 1
    assert await live.page.is_disabled("#composer button")


async def test_forbidden_stream_is_refused_and_not_asked_for_again(open_page: OpenPage, site: Site) -> None:
    live = await open_page()
    await live.open(site.url, RUN, auth=token("eve", read=["task:*"]))

    await live.wait_state("refused")

    assert "FORBIDDEN" in (await live.page.text_content("#state-detail") or "")
    assert live.minted == 1


async def test_bad_token_asks_for_a_better_one(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await open_page()
    await live.open(site.url, RUN, auth=token("ada", read=["run:*"], exp=1_000_000_000))
    await live.wait_state("refused")

    assert await live.page.is_visible("#sign-in")
    assert "expired" in (await live.page.text_content("#sign-in-why") or "")
    await live.page.fill("#token", auth)
    await live.page.click("#sign-in-form button[type=submit]")

    await live.wait_state("live")


async def test_token_that_runs_out_while_watching_can_be_replaced(open_page: OpenPage, auth: str) -> None:
    async with open_site(jwt_leeway_seconds=0, recheck_seconds=0.2) as site:
        live = await watching(open_page, site, token("ada", read=["run:*"], exp=int(time.time()) + 10))
        ids = await publish(site, "before")
        await live.wait_ids(ids)
        await live.wait_state("refused", 20)
        ids += await publish(site, "meanwhile")

        await live.page.fill("#token", auth)
        await live.page.click("#sign-in-form button[type=submit]")

        await live.wait_ids(ids)
        await live.wait_state("live")


async def test_page_that_lost_its_place_to_another_stays_away_until_asked(open_page: OpenPage, auth: str) -> None:
    async with open_site(max_connections_per_user=1) as site:
        first = await watching(open_page, site, auth)
        second = await watching(open_page, site, auth)

        await first.wait_state("refused")
        assert "REPLACED" in (await first.page.text_content("#state-detail") or "")
        ids = await publish(site, "hello")
        await second.wait_ids(ids)
        assert first.opened == 1

        await first.page.click("#resume")
        await first.wait_ids(ids)
        await second.wait_state("refused")


async def test_page_without_a_token_asks_for_one(open_page: OpenPage, site: Site) -> None:
    live = await open_page()

    await live.page.goto(site.url)

    assert await live.page.is_visible("#sign-in")
    assert live.minted == 0


async def test_process_output_is_a_terminal(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    red = {"stream": "stderr", "text": "\x1b[31mfailed\x1b[0m here"}

    await publish(site, red, {"stream": "stdout", "text": "10%\r100%"}, type_="run.output")

    await eventually(live.ids)
    lines = [row for row in await live.rows() if row.kind == "line"]
    assert [line.text.endswith(end) for line, end in zip(lines, ("errfailed here", "100%"), strict=True)] == [
        True,
        True,
    ]
    assert await live.page.text_content(".line.stderr .fg-1") == "failed"
    assert "10%1" not in lines[1].text


async def test_hostile_data_is_text(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    image = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    bomb = "\x1b[31m\x1b[4m" * 50_000 + "x" + "\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x07\x1b[2J\x1b[H"
    ids = await publish(site, image, {image: image}, "y" * 1_000_000)
    ids += await publish(site, *({"stream": "stdout", "text": text} for text in (image, bomb)), type_="run.output")

    await live.wait_ids(ids)

    assert await live.page.locator("#rows img, #rows script, #rows a, #rows iframe").count() == 0
    assert "owned" not in await live.page.title()
    rows = await live.rows()
    assert image in rows[0].text
    assert rows[4].text.endswith("xlink")
    assert await live.page.locator("#rows *").count() < 2_000
    await live.page.click(f'[data-id="{ids[2]}"] summary')
    await live.page.click(f'[data-id="{ids[2]}"] pre button')
    assert len(await live.page.text_content(f'[data-id="{ids[2]}"] pre') or "") == 1_000_000


async def test_large_numbers_are_shown_as_they_were_written(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    number = 12_345_678_901_234_567_890

    await publish(site, {"n": number})

    await eventually(live.ids)
    assert str(number) in (await live.rows())[0].text


async def test_filters_hide_types_and_texts(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    apples = await publish(site, "red", "green", type_="apple")
    pears = await publish(site, "green", type_="pear")
    await live.wait_ids(apples + pears)

    await live.page.click('.chip[data-type="apple"]')
    await eventually(lambda: equal(live, pears))
    await live.page.click('.chip[data-type="apple"]')
    await live.page.fill("#search", "GREEN")

    await eventually(lambda: equal(live, [apples[1], *pears]))
    assert (await live.counts())["records"] == 3


async def equal(live: LivePage, ids: list[str]) -> bool:
    return await live.ids() == ids


@pytest.mark.slow
async def test_long_streams_stay_bounded_in_the_page(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    ids: list[str] = []
    for start in range(0, 6_000, 1_000):
        ids += await publish(site, *range(start, start + 1_000))

    async def all_came() -> bool:
        return (await live.ids())[-1:] == ids[-1:]

    await eventually(all_came, 30)

    assert await live.counts() == {"records": 6_000, "missing": 0, "duplicate": 0}
    shown = await live.ids()
    assert len(shown) <= 2_000
    assert shown == ids[-len(shown) :]
    assert "4,000" in (await live.page.text_content("#dropped") or "")


async def test_scrolling_up_stops_following_until_the_end_is_wanted(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    ids = await publish(site, *range(200))
    await live.wait_ids(ids)

    await live.page.evaluate("document.querySelector('#feed').scrollTop = 0")
    await live.page.wait_for_selector('#follow[aria-pressed="false"]')
    more = await publish(site, *range(30))

    async def told() -> bool:
        return await live.page.text_content("#jump") == "↓ 30 new"

    await eventually(told)
    assert await live.ids() == ids
    await live.page.click("#jump")
    await live.wait_ids(ids + more)
    assert await live.page.evaluate("document.querySelector('#feed').scrollTop") > 0


async def test_every_control_has_a_name(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth)
    await publish(site, {"n": 1})
    await eventually(live.ids)

    unnamed = await live.page.eval_on_selector_all(
        "button, input, select, textarea, summary",
        """controls => controls.filter(one => !(
            one.getAttribute("aria-label") || one.textContent.trim() || (one.labels && one.labels.length)
        )).map(one => one.outerHTML)""",
    )

    assert unnamed == []


CONTRAST = """selectors => selectors.map(selector => {
    const lum = rgb => rgb.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const mix = (colours) => {
        paint.clearRect(0, 0, 1, 1);
        for (const one of colours) { paint.fillStyle = one; paint.fillRect(0, 0, 1, 1); }
        return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const node = document.querySelector(selector);
    const grounds = [];
    for (let up = node; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
    const ground = mix(grounds), ink = mix([...grounds, getComputedStyle(node).color]);
    const [a, b] = [lum(ground), lum(ink)].sort((x, y) => y - x);
    return [selector, (a + .05) / (b + .05)];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_has_contrast(open_page: OpenPage, site: Site, auth: str, scheme: str) -> None:
    live = await watching(open_page, site, auth, color_scheme=scheme)
    await publish(site, {"a": "b", "n": 1, "t": True})
    await publish(site, {"stream": "stdout", "text": "plain"}, type_="run.output")
    await eventually(live.ids)
    selectors = ["#state-word", "#count-records", "#count-missing", "#cursor", "#cut", "#watch button", "#search"]
    selectors += [".record .seq", ".record .time", ".type", ".j-key", ".j-string", ".j-number", ".j-word"]
    selectors += [".line .text", ".line .time", "#follow", "#who", ".into", ".chip .n"]

    found = await live.page.evaluate(CONTRAST, selectors)

    assert {name: round(ratio, 2) for name, ratio in found if ratio < 4.5} == {}


async def test_narrow_screens_do_not_scroll_sideways(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await watching(open_page, site, auth, viewport={"width": 360, "height": 740})
    await publish(site, {"text": "w" * 500}, json.dumps({"n": [1] * 200}))
    await eventually(live.ids)

    assert await live.page.evaluate("document.documentElement.scrollWidth") <= 360
