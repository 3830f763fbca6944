"""Whatever an event, a name or a link holds, the live page shows it as text and runs none of it."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tests.browser.conftest import LivePage, OpenPage, Site
from tests.support.wait import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

RUN = StreamName.parse("run:1")
SCRIPT = "window.pwned = true"
HOSTILE = [
    f"<script>{SCRIPT}</script>",
    f"<img src=x onerror='{SCRIPT}'>",
    f'"><svg onload="{SCRIPT}">',
    "</pre></td></script><iframe srcdoc='<script>parent.pwned=true</script>'>",
    f"javascript:{SCRIPT}",
    "{{constructor.constructor('window.pwned=true')()}}",
    "${window.pwned=true}",
    "\u2028window.pwned=true\u2029",
    "\u202egnp.exe\x1b[31m\x00\x07",
    "<style>body{display:none}</style><base href=//evil.example><meta http-equiv=refresh content=0>",
]


async def nothing_ran(live: LivePage) -> None:
    """No script of an event ran, no element of one came to be, and the page is where it was."""
    assert await live.page.evaluate("window.pwned") is None
    made = "script:not([src]), img, svg, iframe, base, object, embed, form[action], meta[http-equiv]"
    assert await live.page.locator(f"#rows :is({made})").count() == 0
    assert await live.page.evaluate("document.querySelectorAll('iframe, base').length") == 0


async def test_hostile_data_is_text(open_page: OpenPage, site: Site, auth: str) -> None:
    live = await open_page()
    await live.open(site.url, RUN, auth=auth)
    await live.wait_state("live")
    events = [
        Event("note", {text: text}, uid=f"<b>{number}</b>", key="<i>", actor="<u>")
        for number, text in enumerate(HOSTILE)
    ]
    events += [Event("note", text) for text in HOSTILE]
    events.append(Event("a:b/c-d._", HOSTILE))

    ids = [str(one.id) for one in await site.log.append(RUN, events)]

    await live.wait_ids(ids, 60)
    shown = " ".join(row.text for row in await live.rows())
    assert "<script>window.pwned" in shown
    assert "onerror=" in shown
    await nothing_ran(live)
    for row in await live.page.locator("#rows > .row").all():
        await row.click()
    await nothing_ran(live)


async def test_hostile_type_of_a_foreign_entry_is_text(open_page: OpenPage, site: Site, auth: str) -> None:
    for text in HOSTILE:
        site.log.add_foreign(RUN, {"type": text, text: text})
    await site.log.append(RUN, [Event("note", "the last one")])
    live = await open_page()
    await live.open(site.url, RUN, auth=auth)

    async def all_shown() -> bool:
        return any("the last one" in row.text for row in await live.rows())

    await eventually(all_shown, 60, every=0.05)
    await nothing_ran(live)


@pytest.mark.parametrize("text", HOSTILE[:2])
async def test_hostile_link_is_text(open_page: OpenPage, site: Site, text: str) -> None:
    live = await open_page()
    await live.page.goto(f"{site.url}/#stream={quote(text)}&token={quote(text)}&from={quote(text)}")
    await eventually(lambda: _settled(live), 30)

    await nothing_ran(live)
    assert "evil.example" not in live.page.url


async def _settled(live: LivePage) -> bool:
    """The page has said something about what it was asked."""
    return bool(await live.state())
