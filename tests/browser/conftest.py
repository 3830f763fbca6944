"""A real Chromium, the live page as a user sees it, and gateways to look at."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright

from tailrace.app import create_app
from tailrace.eventlog.leases import LeaseStore
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import settings_of
from tests.support.need import need_chromium
from tests.support.serving import Serving, serving
from tests.support.tokens import token
from tests.support.wait import eventually

__all__ = ["ARGS", "LivePage", "OpenPage", "Shown", "Site", "open_site"]

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium for the tests of a file, which run on one loop; each makes profiles of its own."""
    path = need_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, headless=True, args=ARGS)
        yield browser
        await browser.close()


class Shown:
    """One row of the page."""

    def __init__(self, row: dict[str, str]) -> None:
        self.id = row["id"]
        self.kind = row["kind"]
        self.text = row["text"]

    def __repr__(self) -> str:
        return f"<{self.kind} {self.id} {self.text[:80]!r}>"


class LivePage:
    """The page in a tab, in the words of this project."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        """What the browser's console and the page's scripts complained about."""
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", self._said)
        page.on("request", self._requested)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _requested(self, request: Request) -> None:
        self.requests.append(f"{request.method} {request.url}")

    @property
    def minted(self) -> int:
        """How many short tokens the page asked for."""
        return sum("POST" in each and each.endswith("/auth/sse-token") for each in self.requests)

    @property
    def opened(self) -> int:
        """How many event sources were opened, or reopened by the page; native reconnects count too."""
        return sum("/events/stream?" in each for each in self.requests)

    async def open(self, url: str, stream: str, *, auth: str, start: str = "0") -> None:
        """Follow the link that `tailrace dev` prints."""
        await self.page.goto(f"{url}/#token={auth}&stream={stream}&from={quote(start)}")

    async def state(self) -> str:
        """live, cut, degraded, …"""
        return str(await self.page.get_attribute("#state", "data-state"))

    async def wait_state(self, name: str, seconds: float = 30.0) -> None:
        """Wait until the page says so."""

        async def said() -> bool:
            now = await self.state()
            assert now == name, now
            return True

        await eventually(said, seconds, every=0.03)

    async def counts(self) -> dict[str, int]:
        """The counters: records, missing, duplicate."""
        found = {}
        for name in ("records", "missing", "duplicate"):
            text = await self.page.text_content(f"#count-{name}") or ""
            found[name] = int(re.sub(r"\D", "", text) or 0)
        return found

    async def rows(self) -> list[Shown]:
        """All rows, in order."""
        script = """rows => rows.map(row => ({
            id: row.dataset.id ?? "", kind: row.className.split(" ")[1], text: row.textContent }))"""
        return [Shown(row) for row in await self.page.eval_on_selector_all("#rows > .row", script)]

    async def ids(self) -> list[str]:
        """Ids of the records that are shown."""
        return [row.id for row in await self.rows() if row.id]

    async def wait_ids(self, ids: list[str], seconds: float = 30.0) -> None:
        """Wait until exactly these records are shown, in this order, and the page's own check agrees."""

        async def shown() -> bool:
            assert await self.ids() == ids
            return True

        await eventually(shown, seconds, every=0.05)
        assert await self.counts() == {"records": len(ids), "missing": 0, "duplicate": 0}


OpenPage: TypeAlias = Callable[..., Awaitable[LivePage]]


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Make a tab in a profile of its own. Afterwards no script may have failed, and nothing be against the CSP."""
    opened: list[LivePage] = []

    async def make(context: BrowserContext | None = None, **options: Any) -> LivePage:
        page = await (context or await browser.new_context(**options)).new_page()
        opened.append(LivePage(page))
        return opened[-1]

    yield make
    for context in browser.contexts:
        await context.close()
    # An EventSource that cannot connect is told on the console too; that is no complaint about the page.
    complaints = [line for each in opened for line in each.complaints if "Failed to load resource" not in line]
    assert [line for line in complaints if "net::ERR_" not in line] == []


class Site:
    """An application over a log in memory, served on a port."""

    def __init__(self, served: Serving, log: MemoryLog) -> None:
        self.served = served
        self.log = log
        self.url = served.url

    def drop_connections(self) -> None:
        """Cut every connection at the server's side, as a broken network does."""
        for connection in list(self.served.server.server_state.connections):
            connection.transport.abort()


@asynccontextmanager
async def open_site(*, leases: LeaseStore | None = None, **settings: Any) -> AsyncIterator[Site]:
    """Serve the whole application in this process."""
    settings = {"retry_min_seconds": 0.05, "retry_max_seconds": 0.2, **settings}
    given = settings_of(**settings)
    log = MemoryLog(kinds=given.stream_kinds())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(log.aclose)
        served = await stack.enter_async_context(serving(create_app(given, log=log, leases=leases)))
        site = Site(served, log)
        try:
            yield site
        finally:
            await _end(site)


async def _end(site: Site) -> None:
    """An orderly end, with the application's own. Pages would come back until nobody listens any more."""
    server = site.served.server
    server.should_exit = True

    def ended() -> bool:
        site.drop_connections()
        return bool(server.lifespan.shutdown_event.is_set())

    await eventually(ended, 10)


@pytest_asyncio.fixture(loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """An application as it is by default."""
    async with open_site() as site:
        yield site


@pytest.fixture
def auth() -> str:
    """A token that may read and write runs."""
    return token("ada", read=["run:*"], write=["run:*"])
