"""The API's documentation in a real browser: offline, nothing blocked by its own policy."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from tailrace.app import create_app
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import settings_of
from tests.support.serving import serving


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_every_operation_is_shown_and_found(browser: Browser) -> None:
    complaints: list[str] = []
    asked: list[str] = []
    async with serving(create_app(settings_of(), log=MemoryLog())) as served:
        page = await browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{served.url}/docs")
        await page.wait_for_selector(".operation")
        operations = page.locator(".operation")
        shown = await operations.count()
        await operations.first.locator("summary").first.click()
        opened = await operations.first.locator("pre").first.inner_text()
        await page.fill("#filter", "Idempotency-Key")
        found = await page.locator(".operation:visible").count()
        await page.close()

    assert shown == 15
    assert opened.startswith("curl ")
    assert found == 1
    assert complaints == []
    assert all(url.startswith(served.url) for url in asked)
