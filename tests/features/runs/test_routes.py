"""The routes of runs, over a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tests.features.runs.api import ADMIN, OWNER, SERVICE, STRANGER, Site, site
from tests.support.wait import deadline


def types(page: Any) -> list[str]:
    return [event["type"] for event in page["events"]]


async def refused(site: Site, status: int, code: str, method: str, path: str, **more: Any) -> None:
    answer = await site.ask(method, path, **more)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_a_run_from_its_making_to_its_end(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        made = await s.make(kind="report", title="May", metadata={"pages": 2})
        assert (made["status"], made["owner"], made["stream"]) == ("queued", "ada", "run:r1")

        epoch = await s.claim()
        await s.good("POST", f"/runs/r1/events?epoch={epoch}", json=[{"type": "a", "data": 1}, {"type": "b"}])
        leases = await s.good("POST", "/runs/leases", json={"runs": [{"id": "r1", "epoch": epoch}]})
        assert leases == {"runs": {"r1": {"cancel": False, "fenced": False}}}
        done = await s.good("POST", "/runs/r1/complete", json={"epoch": epoch, "result": "s3://x"})

        assert (done["status"], done["result"], done["sealed"]) == ("completed", "s3://x", True)
        assert await s.good("GET", "/runs/r1", auth=OWNER) == done
        assert types(await s.good("GET", "/runs/r1/events", auth=OWNER)) == ["a", "b", "run.completed"]
        info = await s.good("GET", "/streams/run:r1", auth=OWNER)
        assert info["state"] == "closed"
        assert 86_000 < info["ttl"] <= 86_400


async def test_an_epoch_that_no_claim_has_is_refused_and_one_that_is_news_is_not(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        # This gateway has just looked; the claim is made elsewhere.
        await s.good("GET", "/runs/r1/events", auth=OWNER)
        epoch = (await s.feature.service.begin("r1", producer="p1")).epoch

        await s.good("POST", f"/runs/r1/events?epoch={epoch}", json={"type": "a"})
        await refused(s, 409, "FENCED", "POST", f"/runs/r1/events?epoch={epoch + 1}", json={"type": "b"})
        await s.good("POST", f"/runs/r1/events?epoch={epoch}", json={"type": "c"})

        assert types(await s.good("GET", "/runs/r1/events", auth=OWNER)) == ["a", "c"]


async def test_a_run_that_another_gateway_made_is_there_at_once_for_who_asked_too_early(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await refused(s, 404, "RUN_NOT_FOUND", "GET", "/runs/r1/events")
        await s.feature.service.create(owner="ada", run_id="r1")
        epoch = (await s.feature.service.begin("r1", producer="p1")).epoch

        await s.good("POST", f"/runs/r1/events?epoch={epoch}", json={"type": "a"})

        await refused(s, 404, "RUN_NOT_FOUND", "GET", "/runs/r2/events")
        await s.feature.service.create(owner="ada", run_id="r2")
        assert types(await s.good("GET", "/runs/r2/events")) == []


async def test_the_old_paths_without_a_prefix_are_there(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        await s.good("POST", "/runs/r1/events", json={"type": "a", "data": {"n": 1}})
        await s.good("POST", "/runs/r1/complete")

        headers = {"Authorization": f"Bearer {OWNER}"}
        page = (await s.http.get("/runs/r1/events?format=raw", headers=headers)).json()
        async with deadline(30), s.http.stream("GET", "/runs/r1/events/stream", headers=headers) as answer:
            text = (await answer.aread()).decode()

        assert page["events"][0]["n"] == 1
        assert set(page["events"][0]) == {"id", "n"}
        assert "event: a\n" in text
        assert "event: run.completed\n" in text
        assert "event: stream.closed\n" in text


async def test_a_viewer_is_given_everything_then_what_comes_then_the_end(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        await s.good("POST", "/runs/r1/events", json={"type": "first"})
        viewer = asyncio.create_task(s.lines("/runs/r1/events/stream", until='"control":"closed"'))
        async with connect(
            f"{s.served.url.replace('http', 'ws')}/api/v1/runs/r1/ws",
            additional_headers={"Authorization": f"Bearer {OWNER}"},
        ) as socket:
            async with deadline(30):
                opened = [json.loads(await socket.recv()) for _ in range(2)]
            assert [opened[0]["control"], opened[1]["type"]] == ["open", "first"]
            await s.good("POST", "/runs/r1/events", json={"type": "second"})
            await s.good("POST", "/runs/r1/fail", json={"error": "no paper"})
            async with deadline(30):
                rest = [json.loads(await socket.recv()) for _ in range(3)]

        assert [each.get("type", each.get("control")) for each in rest] == ["second", "run.failed", "closed"]
        assert rest[1]["data"]["error"] == "no paper"
        seen = [line.removeprefix("event: ") for line in await viewer if line.startswith("event: ")]
        assert seen[:4] == ["stream.open", "first", "second", "run.failed"]


async def test_owners_read_their_run_everywhere_and_strangers_nowhere(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        await s.good("POST", "/runs/r1/events", json={"type": "a"})
        paths = ["/runs/r1", "/runs/r1/events", "/streams/run:r1", "/streams/run:r1/events"]
        paths += ["/events/poll?stream=run:r1&timeout=0", "/events/history?stream=run:r1"]

        for path in paths:
            await s.good("GET", path, auth=OWNER)
            await refused(s, 403, "FORBIDDEN", "GET", path, auth=STRANGER)
            await refused(s, 403, "FORBIDDEN", "GET", path.replace("r1", "none"), auth=STRANGER)
            await refused(s, 401, "UNAUTHORIZED", "GET", path, auth=None)
        for path in ("/runs/r1/events/stream", "/streams/run:r1/events/stream"):
            assert any("event: a" in line for line in await s.lines(path, until="event: a"))
            await refused(s, 403, "FORBIDDEN", "GET", path, auth=STRANGER)


async def test_only_who_may_write_runs_makes_claims_and_ends_them(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        for auth in (OWNER, STRANGER):
            await refused(s, 403, "FORBIDDEN", "POST", "/runs", auth=auth, json={"id": "mine"})
            await refused(s, 403, "FORBIDDEN", "POST", "/runs", auth=auth, json={})
            await refused(s, 403, "FORBIDDEN", "POST", "/runs/r1/claim", auth=auth, json={"producer": "x"})
            await refused(s, 403, "FORBIDDEN", "POST", "/runs/r1/events", auth=auth, json={"type": "a"})
            for end in ("complete", "fail"):
                await refused(s, 403, "FORBIDDEN", "POST", f"/runs/r1/{end}", auth=auth)
            leases = {"runs": [{"id": "r1", "epoch": 1}]}
            await refused(s, 403, "FORBIDDEN", "POST", "/runs/leases", auth=auth, json=leases)
            await refused(s, 403, "FORBIDDEN", "POST", "/runs/r1/cancel", auth=auth, json={"epoch": 1})
        await refused(s, 403, "FORBIDDEN", "POST", "/runs/r1/cancel", auth=STRANGER)
        await refused(s, 403, "FORBIDDEN", "POST", "/runs/none/cancel", auth=STRANGER)

        assert (await s.good("POST", "/runs/r1/cancel", auth=OWNER))["status"] == "cancelled"


async def test_cancelling_tells_the_producer_who_ends_it(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.make()
        epoch = await s.claim()

        asked = await s.good("POST", "/runs/r1/cancel", auth=OWNER)
        assert (asked["status"], asked["cancel_requested_at"] is not None) == ("running", True)
        leases = await s.good("POST", "/runs/leases", json={"runs": [{"id": "r1", "epoch": epoch}]})
        assert leases["runs"]["r1"]["cancel"] is True
        done = await s.good("POST", "/runs/r1/cancel", json={"epoch": epoch})

        assert (done["status"], done["sealed"]) == ("cancelled", True)


async def test_lists_show_ones_own_runs_by_pages_and_filters(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        for number in range(5):
            await s.make(f"a{number}", kind="x" if number % 2 else "y")
        await s.make("b", owner="bob")
        await s.good("POST", "/runs/a3/complete")

        seen: list[str] = []
        path = "/runs?limit=2"
        while True:
            page = await s.good("GET", path, auth=OWNER)
            seen += [run["id"] for run in page["runs"]]
            if page["next_cursor"] is None:
                break
            path = f"/runs?limit=2&cursor={page['next_cursor']}"
        assert sorted(seen) == ["a0", "a1", "a2", "a3", "a4"]

        async def ids(query: str, auth: str = ADMIN) -> set[str]:
            return {run["id"] for run in (await s.good("GET", f"/runs?{query}", auth=auth))["runs"]}

        assert await ids("") == {*seen, "b"}
        assert await ids("owner=bob", SERVICE) == {"b"}
        assert await ids("status=completed,failed") == {"a3"}
        assert await ids("kind=x&status=queued") == {"a1"}
        assert await ids("created_before=1") == set()
        assert await ids("", STRANGER) == set()
        await refused(s, 403, "FORBIDDEN", "GET", "/runs?owner=bob", auth=OWNER)
        for bad in ("status=dead", "limit=0", "limit=999", "cursor=x", "created_from=x", "kind=a%20b"):
            await refused(s, 400, "MALFORMED", "GET", f"/runs?{bad}")


async def test_what_cannot_be_understood_is_refused(tmp_path: Path) -> None:
    bad: list[tuple[str, Any]] = [
        ("/runs", {"ownr": "x"}),
        ("/runs", {"id": "a:b"}),
        ("/runs", {"kind": "a b"}),
        ("/runs", {"metadata": []}),
        ("/runs", {"title": "\0"}),
        ("/runs/r1/claim", {}),
        ("/runs/r1/claim", {"producer": ""}),
        ("/runs/r1/complete", {"epoch": "1"}),
        ("/runs/leases", {"runs": [{"id": "r1"}]}),
        ("/runs/leases", {"runs": [{"id": "r1", "epoch": 1}] * 1_001}),
    ]
    async with site(tmp_path) as s:
        await s.make()
        for path, sent in bad:
            await refused(s, 400, "MALFORMED", "POST", path, json=sent)


async def test_the_document_names_the_answers(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        document = (await s.http.get("/openapi.json")).json()

        listed = document["paths"]["/api/v1/runs/{run_id}/events"]["get"]["responses"]["200"]
        assert listed["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/EventListResponse"}
        text = json.dumps(document)
        for name in document["components"]["schemas"]:
            assert f"#/components/schemas/{name}" in text


async def test_a_stream_without_a_row_is_read_as_ever(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        await s.log.append(StreamName.parse("run:old"), [Event("a", 1)])

        assert types(await s.good("GET", "/streams/run:old/events")) == ["a"]
        assert types(await s.good("GET", "/runs/old/events")) == ["a"]
        await refused(s, 403, "FORBIDDEN", "GET", "/runs/old/events", auth=OWNER)
