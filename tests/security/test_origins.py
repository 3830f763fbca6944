"""Whose page may do what: every route x every kind of page, with an admin's cookie, which a browser sends by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.core.names import StreamName
from tests.security.routes import PREFIX, Where, all_routes
from tests.security.rules import RULES, Rule
from tests.security.site import Answer, Site, open_site
from tests.support.tokens import token

ROOT = token("root", admin=True)
RUN = StreamName.parse("run:alices")
LISTED = "https://app.example"
FOREIGN: dict[str, dict[str, str]] = {
    "other": {"Origin": "https://evil.example"},
    "null": {"Origin": "null"},
    "scheme": {"Origin": "https://OWN"},
    "port": {"Origin": "http://127.0.0.1:1"},
    "suffix": {"Origin": "http://OWN.evil.example"},
    "user": {"Origin": "http://OWN@evil.example"},
    "listed": {"Origin": LISTED},
    "fetched": {"Origin": "http://OWN", "Sec-Fetch-Site": "cross-site"},
    "sibling": {"Origin": "http://OWN", "Sec-Fetch-Site": "same-site"},
}
GUARDED = [
    each for each in all_routes() if RULES[each.rule][0].rule is not Rule.PUBLIC and each.path.startswith(PREFIX)
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with open_site(tmp_path_factory.mktemp("origins"), cookie_name="session", cors_origins=(LISTED,)) as made:
        yield made


async def ask(it: Site, where: Where, headers: dict[str, str]) -> Answer:
    own = "test" if where.method == "WS" else f"127.0.0.1:{it.served.port}"
    given = {name: value.replace("OWN", own) for name, value in headers.items()}
    return await it.ask(where, RUN, given, body=_body(where))


def _body(where: Where) -> object:
    """Nothing that a route needs; but an empty body would end the admin's own tokens."""
    if where.method != "POST":
        return None
    return RULES[where.rule][0].body if where.rule[1] == "/auth/revoke" else {}


def _ids(where: Where) -> str:
    return f"{where.method} {where.path}"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("where", GUARDED, ids=_ids)
async def test_cookie_is_worth_nothing_on_a_foreign_page(where: Where, it: Site) -> None:
    await it.restore(RUN)
    before = await it.log.heads([RUN])
    cookie = {"Cookie": f"session={ROOT}"}
    pages = {**FOREIGN, **({} if where.method in ("GET", "HEAD") else {"no page": {}})}
    for name, headers in pages.items():
        answer = await ask(it, where, {**cookie, **headers})

        assert answer.status == 403, (name, answer)
        if name != "listed":
            assert "access-control-allow-origin" not in answer.headers, (name, answer)
        assert "access-control-allow-credentials" not in answer.headers, (name, answer)
    assert await it.log.heads([RUN]) == before
    assert (await it.runs.service.get("alices")).status == "queued"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("where", GUARDED, ids=_ids)
async def test_cookie_counts_on_our_own_page(where: Where, it: Site) -> None:
    await it.restore(RUN)
    own = {"Origin": "http://OWN", "Sec-Fetch-Site": "same-origin", "Cookie": f"session={ROOT}"}

    answer = await ask(it, where, own)

    # A body may be missing; who asks is known and may.
    assert answer.status not in (401, 403), answer


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("where", all_routes(), ids=_ids)
async def test_origin_is_named_only_if_it_is_listed_and_then_exactly(where: Where, it: Site) -> None:
    await it.restore(RUN)
    for name, headers in FOREIGN.items():
        if where.method == "WS":
            continue
        answer = await ask(it, where, {**headers, "Authorization": f"Bearer {ROOT}"})
        listed = headers["Origin"] == LISTED

        assert answer.headers.get("access-control-allow-origin") == (LISTED if listed else None), (name, answer)
        assert "access-control-allow-credentials" not in answer.headers, (name, answer)
        assert "origin" in answer.headers["vary"].lower(), (name, answer)
