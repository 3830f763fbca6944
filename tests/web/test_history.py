from __future__ import annotations

from typing import Any

import pytest

from tailrace.config import KindSettings
from tests.support.gateway import Api, api
from tests.support.tokens import token

PATH = "/api/v1/streams/run:42/events"


def numbered(*numbers: int, type_: str = "n") -> list[dict[str, Any]]:
    return [{"type": type_, "data": number} for number in numbers]


async def page(it: Api, query: str = "", path: str = PATH) -> dict[str, Any]:
    answer = await it.call("GET", f"{path}?{query}")
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def data(made: dict[str, Any]) -> list[Any]:
    return [each["data"] for each in made["events"]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 1_000])
async def test_pages_forward_hold_every_record_once(limit: int) -> None:
    async with api() as it:
        await it.publish("run:42", *numbered(*range(10)))
        seen, query = [], f"limit={limit}"
        while True:
            made = await page(it, query)
            seen += data(made)
            assert made["gap"] is None
            if not made["has_more"]:
                assert made["next_id"] is None
                break
            query = f"limit={limit}&start_id={made['next_id']}"

    assert seen == list(range(10))


@pytest.mark.parametrize("limit", [1, 3, 10, 11])
async def test_pages_backward_hold_every_record_once(limit: int) -> None:
    async with api() as it:
        await it.publish("run:42", *numbered(*range(10)))
        seen, query = [], f"order=desc&limit={limit}"
        while True:
            made = await page(it, query)
            seen += data(made)
            assert made["gaps"] == []
            if not made["has_more"]:
                break
            query = f"order=desc&limit={limit}&end_id={made['next_id']}"

    assert seen == list(range(9, -1, -1))


async def test_start_and_end_are_inclusive_and_since_is_exclusive() -> None:
    async with api() as it:
        ids = await it.publish("run:42", *numbered(*range(6)))

        assert data(await page(it, f"start_id={ids[1]}&end_id={ids[3]}")) == [1, 2, 3]
        assert data(await page(it, f"since_id={ids[1]}&end_id={ids[3]}")) == [2, 3]
        assert data(await page(it, f"since_id={ids[1]}")) == [2, 3, 4, 5]
        assert data(await page(it, f"since_id={ids[5]}")) == []
        assert data(await page(it, "since_id=0")) == [0, 1, 2, 3, 4, 5]
        assert data(await page(it, f"order=desc&start_id={ids[2]}&end_id={ids[4]}")) == [4, 3, 2]
        assert data(await page(it, f"order=desc&since_id={ids[3]}")) == [5, 4]
        assert data(await page(it, f"start_id={ids[4]}&end_id={ids[1]}")) == []


async def test_bare_time_is_a_place_in_the_stream() -> None:
    async with api() as it:
        ids = await it.publish("run:42", *numbered(0, 1))
        ms = int(ids[0].partition("-")[0])

        assert data(await page(it, f"start_id={ms}")) == [0, 1]
        assert data(await page(it, f"since_id={ms}")) == [0, 1]
        assert data(await page(it, f"end_id={ms - 1}")) == []
        assert data(await page(it, f"start_id={ms + 3_600_000}")) == []


async def test_types_filter_may_leave_a_page_empty_with_more_behind_it() -> None:
    async with api() as it:
        await it.publish("run:42", *numbered(*range(1_000)))
        await it.publish("run:42", *numbered(*range(500)))
        await it.publish("run:42", *numbered(7, type_="rare"))

        first = await page(it, "types=rare,other&limit=10")
        second = await page(it, f"types=rare&limit=10&start_id={first['next_id']}")

    assert (data(first), first["has_more"]) == ([], True)
    assert (data(second), second["has_more"]) == ([7], False)


async def test_page_ends_at_its_bytes_but_holds_a_record() -> None:
    async with api(max_page_bytes=1_000) as it:
        await it.publish("run:42", *[{"type": "n", "data": "x" * size} for size in (400, 400, 400, 5_000, 10)])
        sizes, query = [], ""
        while True:
            made = await page(it, query)
            sizes.append([len(each) for each in data(made)])
            if not made["has_more"]:
                break
            query = f"start_id={made['next_id']}"

    assert sizes == [[400, 400], [400], [5_000], [10]]


async def test_trimmed_history_is_announced() -> None:
    async with api(kinds={"run": KindSettings(max_length=100)}) as it:
        ids = await it.publish("run:42", *numbered(*range(300)))
        whole = await page(it)
        since = await page(it, f"since_id={ids[10]}&limit=5")
        begin = await page(it, f"start_id={ids[10]}&limit=5")
        inside = await page(it, f"since_id={whole['events'][0]['id']}&limit=5")

    first = data(whole)[0]
    assert 0 < first <= 200
    assert (whole["gap"]["reason"], whole["gap"]["missed"], whole["gap"]["after"]) == ("trimmed", first, "0-0")
    assert (since["gap"]["missed"], since["gap"]["after"]) == (first - 11, ids[10])
    assert (begin["gap"]["missed"], begin["gap"]["before"]) == (first - 10, whole["events"][0]["id"])
    assert inside["gap"] is None


async def test_cursor_that_is_ahead_is_told_and_given_what_there_is() -> None:
    async with api() as it:
        await it.publish("run:42", *numbered(0, 1))
        made = await page(it, "since_id=9999999999999-7")

    assert (made["gap"]["reason"], data(made)) == ("ahead", [0, 1])


async def test_deleted_and_written_again_is_a_gap_and_the_new_history() -> None:
    async with api() as it:
        ids = await it.publish("run:42", *numbered(0, 1, 2))
        await it.call("DELETE", "/api/v1/streams/run:42")
        await it.publish("run:42", *numbered(10, 11))
        since = await page(it, f"since_id={ids[2]}")
        begin = await page(it, f"start_id={ids[0]}")

    assert (since["gap"]["reason"], data(since)) == ("deleted", [10, 11])
    assert (begin["gap"]["reason"], data(begin)) == ("deleted", [10, 11])


async def test_stream_that_never_was_is_an_empty_page() -> None:
    async with api() as it:
        made = await page(it)

    assert made == {"events": [], "has_more": False, "next_id": None, "gap": None, "gaps": [], "state": "missing"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1000000000",
        "limit=1001",
        "limit=1e2",
        "limit=ten",
        "limit=%EF%BC%91",
        "limit=1&limit=2",
        "limit=" + "9" * 5_000,
        "order=up",
        "order=asc&order=desc",
        "start_id=x",
        "start_id=1-2-3",
        "start_id=01-1",
        "start_id=18446744073709551616-1",
        "start_id=18446744073709551616",
        "start_id=-",
        "start_id=%2B",
        "start_id=1-1%00",
        "start_id=1-1%0d%0a",
        "end_id=*",
        "since_id=$",
        "since_id=-1",
        "since_id=+1",
        "since_id=" + "1" * 70_000,
        "since_id=c1.!!!",
        "start_id=1-1&since_id=1-1",
        "types=a%20b",
        "types=stream.gap",
        "types=" + ",".join(["a"] * 65),
    ],
)
async def test_bad_parameter_is_a_400_that_is_clear(query: str) -> None:
    async with api() as it:
        status, problem = await it.raw_get(PATH, query)

    assert status == 400
    assert problem["code"] in ("MALFORMED", "INVALID_CURSOR")
    assert len(str(problem)) < 1_000


async def test_unknown_and_empty_parameters_are_ignored() -> None:
    async with api() as it:
        await it.publish("run:42", *numbered(0))

        assert data(await page(it, "limit=&utm_source=x&_=1")) == [0]


async def test_merged_pages_hold_every_record_of_every_stream_once_by_time() -> None:
    async with api() as it:
        streams = [f"run:{name}" for name in "abcd"]
        for number in range(5):
            for stream in streams:
                await it.publish(stream, *numbered(number))
        asked = "&".join(f"stream={stream}" for stream in streams)
        seen, query = [], f"{asked}&limit=3"
        while True:
            made = await page(it, query, "/api/v1/events/history")
            seen += [(each["stream"], each["data"], each["id"]) for each in made["events"]]
            if not made["has_more"]:
                break
            query = f"{asked}&limit=3&since_id={made['next_id']}"
        rest = await page(it, f"{asked}&since_id={made['cursor']}", "/api/v1/events/history")

    assert sorted((stream, number) for stream, number, _ in seen) == sorted(
        (stream, number) for stream in streams for number in range(5)
    )
    times = [(int(id_.partition("-")[0]), stream) for stream, _, id_ in seen]
    assert times == sorted(times)
    for stream in streams:
        assert [number for name, number, _ in seen if name == stream] == [0, 1, 2, 3, 4]
    assert (rest["events"], rest["has_more"]) == ([], False)


async def test_merged_history_without_streams_is_the_callers_own() -> None:
    async with api() as it:
        await it.publish("user:alice", *numbered(1))
        await it.publish("user:bob", *numbered(2))
        await it.publish("system:all", *numbered(3))
        answer = await it.call("GET", "/api/v1/events/history", auth=token("alice"))

    assert sorted(each["data"] for each in answer.json()["events"]) == [1, 3]


async def test_merged_history_tells_the_gap_of_each_stream() -> None:
    async with api(kinds={"run": KindSettings(max_length=100)}) as it:
        await it.publish("run:a", *numbered(*range(300)))
        await it.publish("run:b", *numbered(1))
        await it.publish("run:c", *numbered(1))
        await it.call("DELETE", "/api/v1/streams/run:c")
        made = await page(it, "stream=run:a&stream=run:b&stream=run:c&limit=1000", "/api/v1/events/history")

    assert {(gap["stream"], gap["reason"]) for gap in made["gaps"]} == {("run:a", "trimmed"), ("run:c", "deleted")}
    assert made["events"][-1]["stream"] == "run:b"


@pytest.mark.parametrize(
    "query",
    [
        "&".join(f"stream=run:{number}" for number in range(10_000)),
        "&".join(f"stream=run:{number}" for number in range(33)),
        "stream=run:1&stream=run:1",
        "stream=",
        "stream=run:1&stream=run:2&CURSOR=1-1",
        "stream=run:1&CURSOR=c1.AAAA",
        "stream=run:1&CURSOR=" + "1" * 70_000,
        "stream=run:1&CURSOR=1-1&CURSOR=1-1",
    ],
    ids=lambda query: query[:40],
)
@pytest.mark.parametrize(("path", "cursor"), [("history", "since_id"), ("stream", "last_event_id"), ("poll", "cursor")])
async def test_bad_list_of_streams_or_cursor_is_a_400(query: str, path: str, cursor: str) -> None:
    async with api() as it:
        status, problem = await it.raw_get(f"/api/v1/events/{path}", query.replace("CURSOR", cursor))

    assert status == 400
    assert problem["code"] in ("MALFORMED", "INVALID_STREAM", "INVALID_CURSOR")


async def test_merged_history_has_nothing_after_now() -> None:
    async with api() as it:
        answer = await it.call("GET", "/api/v1/events/history?stream=run:1&since_id=$")

    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_CURSOR")
