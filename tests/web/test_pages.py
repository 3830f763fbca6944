"""OpenAPI, its page, the live page: offline, and under a strict policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tailrace
from tests.support.gateway import api

WEB = Path(tailrace.__file__).parent / "web"


async def test_document_describes_every_route_with_examples_and_problems() -> None:
    async with api() as it:
        document = (await it.call("GET", "/openapi.json", auth=None)).json()

    expected = {
        "post /api/v1/streams/{stream}/events",
        "get /api/v1/streams/{stream}/events",
        "get /api/v1/streams/{stream}",
        "delete /api/v1/streams/{stream}",
        "post /api/v1/streams/{stream}/close",
        "get /api/v1/events/stream",
        "get /api/v1/streams/{stream}/events/stream",
        "get /api/v1/events/history",
        "get /api/v1/events/poll",
        "post /api/v1/auth/sse-token",
        "post /api/v1/auth/revoke",
        "get /api/v1/events/health",
        "get /healthz",
        "get /readyz",
        "get /metrics",
    }
    described = {f"{method} {path}": each for path, item in document["paths"].items() for method, each in item.items()}
    assert set(described) == expected
    identifiers = [each["operationId"] for each in described.values()]
    assert len(set(identifiers)) == len(identifiers)
    for name, operation in described.items():
        assert operation["summary"], name
        assert operation["description"], name
        if "health" not in operation["tags"]:
            assert {"401", "403"} <= set(operation["responses"]), name
        for status, response in operation["responses"].items():
            for type_, content in response.get("content", {}).items():
                if status >= "400":
                    assert type_ == "application/problem+json", (name, status)
                    assert content["example"]["status"] == int(status)
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert described["get /healthz"]["security"] == []


@pytest.mark.parametrize("path", ["/docs", "/docs/docs.js", "/docs/docs.css", "/", "/index.html", "/app.js"])
async def test_pages_are_served_with_a_strict_policy_and_an_etag(path: str) -> None:
    async with api() as it:
        answer = await it.call("GET", path, auth=None)
        again = await it.call("GET", path, auth=None, headers={"If-None-Match": answer.headers["etag"]})
        head = await it.call("HEAD", path, auth=None)

    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (again.status_code, again.content) == (304, b"")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("folder", ["docs", "page"])
def test_pages_need_no_network_and_no_inline_code(folder: str) -> None:
    for file in (WEB / folder).iterdir():
        if file.suffix not in (".html", ".js", ".css"):
            continue
        text = file.read_text()
        foreign = [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if not url.startswith("http://www.w3.org/")]
        assert foreign == [], file
        if file.suffix == ".html":
            assert re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text) is None, file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/%2e%2e/app.py",
        "/..%2fapp.py",
        "/docs/../auth.py",
        "/docs/%2e%2e/auth.py",
        "/.git/config",
        "/page",
        "/docs/",
        "/nothing.js",
        "/index.html%00.js",
        "/index.html/",
        "//etc/passwd",
        "/%5c..%5capp.py",
        "/" + "x" * 5_000,
    ],
)
async def test_nothing_outside_of_the_pages_is_served(path: str) -> None:
    async with api() as it:
        answer = await it.call("GET", f"http://test{path}", auth=None)

    assert answer.status_code in (307, 404)
    if answer.status_code == 404:
        assert answer.json()["code"] == "NOT_FOUND"


async def test_pages_can_be_switched_off() -> None:
    async with api(docs_enabled=False, page_enabled=False, metrics_enabled=False) as it:
        answers = [
            (await it.call("GET", path, auth=None)).status_code for path in ("/", "/docs", "/openapi.json", "/metrics")
        ]

    assert answers == [404] * 4


async def test_unknown_method_and_path_are_problems() -> None:
    async with api() as it:
        answers = [
            await it.call("POST", "/nothing"),
            await it.call("PUT", "/api/v1/streams/run:1/events"),
            await it.call("GET", "/api/v1/nothing"),
            await it.call("GET", "/api/v1/streams/run:1/events/"),
            await it.call("DELETE", "/healthz"),
        ]

    assert [each.status_code for each in answers] == [404, 405, 404, 404, 405]
    assert {each.headers["content-type"] for each in answers} == {"application/problem+json"}
    assert "GET" in answers[1].headers["allow"] or "POST" in answers[1].headers["allow"]
