"""`/events/poll` on a real server: the same records as everywhere, by asking again and again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tailrace.codes import CloseCode
from tailrace.core.ids import ZERO
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.hub.hub import Hub
from tailrace.transports.poll import PollAnswer, PollOptions, PollSink, _answer
from tailrace.web.principal import Action, GrantAuthorizer, Principal
from tests.support.tokens import token
from tests.support.wait import deadline, eventually
from tests.support.ws import RUN, Gate, gate, publish

JWT = token(read=["run:*"])


@pytest.fixture
async def running() -> AsyncIterator[Gate]:
    async with gate(max_connections_per_user=0) as made:
        yield made


async def ask(running: Gate, *streams: str, jwt: str = JWT, **query: Any) -> httpx.Response:
    """One poll."""
    parameters: list[tuple[str, Any]] = [("stream", stream) for stream in streams]
    parameters += [(name, str(value)) for name, value in query.items()]
    address = f"{running.server.url}/api/v1/events/poll"
    async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
        return await client.get(address, params=parameters, headers={"Authorization": f"Bearer {jwt}"})


async def poll(running: Gate, *streams: str, **query: Any) -> Any:
    """One poll that is answered."""
    response = await ask(running, *(streams or (RUN,)), **query)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


def numbers(answer: Any) -> list[int]:
    return [event["data"]["n"] for event in answer["events"]]


async def test_without_a_cursor_the_answer_comes_at_once_and_can_be_gone_on_from(running: Gate) -> None:
    begun = time.monotonic()

    first = await poll(running, timeout=20)
    await publish(running.log, 2)
    second = await poll(running, cursor=first["cursor"])

    assert time.monotonic() - begun < 5
    assert first == {"events": [], "cursor": "0-0", "gap": None, "gaps": [], "ended": [], "closed": None}
    assert numbers(second) == [1, 2]


async def test_a_stream_that_starts_now_loses_nothing_between_two_polls(running: Gate) -> None:
    await publish(running.log, 3, "user:alice")

    first = await poll(running, "user:alice")
    await publish(running.log, 2, "user:alice", first=4)
    second = await poll(running, "user:alice", cursor=first["cursor"])

    assert first["events"] == []
    assert numbers(second) == [4, 5]


async def test_what_is_there_is_answered_at_once(running: Gate) -> None:
    ids = await publish(running.log, 5)
    begun = time.monotonic()

    answer = await poll(running, cursor=ids[1], timeout=20)

    assert time.monotonic() - begun < 2
    assert [event["id"] for event in answer["events"]] == ids[2:]
    assert [event["prev"] for event in answer["events"]] == ids[1:4]
    assert answer["cursor"] == ids[4]


async def test_what_comes_later_is_waited_for(running: Gate) -> None:
    ids = await publish(running.log, 1)
    polling = asyncio.create_task(poll(running, cursor=ids[0], timeout=20))
    await eventually(lambda: running.gateway.hub.statistics().live_lanes == 2)

    ids += await publish(running.log, 1)

    async with deadline(2.0):
        answer = await polling
    assert [event["id"] for event in answer["events"]] == ids[1:]


async def test_nothing_within_the_time_is_an_empty_answer(running: Gate) -> None:
    ids = await publish(running.log, 1)
    begun = time.monotonic()

    answer = await poll(running, cursor=ids[0], timeout=0.3)

    assert 0.3 <= time.monotonic() - begun < 2
    assert (answer["events"], answer["cursor"], answer["closed"]) == ([], ids[0], None)


async def test_the_server_waits_no_longer_than_it_may(running: Gate) -> None:
    async with gate(max_poll_seconds=0.2) as hasty:
        ids = await publish(hasty.log, 1)
        async with deadline(3.0):
            assert (await poll(hasty, cursor=ids[0], timeout=3_000))["events"] == []


@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_poll_after_poll_gives_each_record_once(running: Gate, limit: int) -> None:
    ids = await publish(running.log, 30)
    seen: list[str] = []
    cursor = "0"

    async with deadline(20.0):
        while len(seen) < 40:
            answer = await poll(running, cursor=cursor, limit=limit, timeout=1)
            assert len(answer["events"]) <= limit
            seen += [event["id"] for event in answer["events"]]
            cursor = answer["cursor"]
            if len(ids) < 40:
                ids += await publish(running.log, 1)

    assert seen == ids


async def test_a_page_is_bounded_in_bytes_and_holds_at_least_one_record(running: Gate) -> None:
    async with gate(max_page_bytes=1_000_000) as small:
        await publish(small.log, 10, size=300_000)
        await publish(small.log, 1, size=1_040_000, first=11)
        cursor, sizes = "0", []
        seen: list[int] = []
        while len(seen) < 11:
            answer = await poll(small, cursor=cursor)
            cursor = answer["cursor"]
            sizes.append(len(answer["events"]))
            seen += numbers(answer)

    assert seen == list(range(1, 12))
    assert max(sizes) == 3


async def test_a_thousand_events_are_the_most(running: Gate) -> None:
    await publish(running.log, 1_000)
    await publish(running.log, 500, first=1_001)

    first = await poll(running, cursor="0")
    second = await poll(running, cursor=first["cursor"])

    assert len(first["events"]) <= 1_000
    assert numbers(first) + numbers(second) == list(range(1, 1_501))


async def test_several_streams_have_one_cursor(running: Gate) -> None:
    await publish(running.log, 3, "run:1")
    first = await poll(running, "run:1", "run:2", cursor="0")
    await publish(running.log, 2, "run:2")
    await publish(running.log, 1, "run:1", first=4)

    second = await poll(running, "run:1", "run:2", cursor=first["cursor"])
    again = await poll(running, "run:2", "run:1", cursor=second["cursor"], timeout=0)

    assert first["cursor"].startswith("c1.")
    assert numbers(first) == [1, 2, 3]
    assert sorted((event["stream"], event["data"]["n"]) for event in second["events"]) == [
        ("run:1", 4),
        ("run:2", 1),
        ("run:2", 2),
    ]
    assert again["events"] == []


async def test_thirty_two_streams_wait_together(running: Gate) -> None:
    streams = [f"run:{n}" for n in range(32)]
    first = await poll(running, *streams)
    polling = asyncio.create_task(poll(running, *streams, cursor=first["cursor"]))
    await eventually(lambda: running.gateway.hub.statistics().live_lanes == 33)

    await publish(running.log, 1, "run:31")

    assert (await polling)["events"][0]["stream"] == "run:31"


async def test_without_a_stream_it_is_ones_own(running: Gate) -> None:
    first = (await ask(running)).json()
    await publish(running.log, 1, "user:alice")
    await publish(running.log, 1, "system:all")

    answers = [(await ask(running, cursor=first["cursor"])).json()]
    if len(answers[0]["events"]) < 2:
        answers.append((await ask(running, cursor=answers[0]["cursor"])).json())

    assert sorted(event["stream"] for answer in answers for event in answer["events"]) == ["system:all", "user:alice"]


async def test_an_end_is_told_with_the_last_record_and_to_who_has_it(running: Gate) -> None:
    ids = await publish(running.log, 2)
    await running.log.close(RUN)

    first = await poll(running, cursor=ids[0])
    again = await poll(running, cursor=first["cursor"])

    for answer, count in ((first, 1), (again, 0)):
        assert len(answer["events"]) == count
        assert answer["ended"][0]["stream"] == RUN
        assert answer["closed"]["code"] == CloseCode.ENDED


async def test_one_of_two_streams_may_end(running: Gate) -> None:
    await publish(running.log, 1, "run:1")
    await running.log.close(RUN)

    answer = await poll(running, "run:1", "run:2", cursor="0")

    assert [each["stream"] for each in answer["ended"]] == [RUN]
    assert answer["closed"] is None


async def test_a_cursor_ahead_of_the_stream_gets_a_gap_and_goes_on_behind_it(running: Gate) -> None:
    await publish(running.log, 2)

    answer = await poll(running, cursor="9999999999999-50")

    assert (answer["gap"]["reason"], answer["gap"]["after"]) == ("ahead", "9999999999999-50")
    records = numbers(answer) or numbers(await poll(running, cursor=answer["cursor"]))
    assert records == [1, 2]


async def test_raw_events_are_the_applications_objects(running: Gate) -> None:
    ids = await publish(running.log, 1)

    assert (await poll(running, cursor="0", format="raw"))["events"] == [{"id": ids[0], "n": 1}]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"cursor": "garbage"}, "INVALID_CURSOR"),
        ({"cursor": "c1.AAAA"}, "INVALID_CURSOR"),
        ({"cursor": "1" * 5_000}, "INVALID_CURSOR"),
        ({"timeout": "-1"}, "MALFORMED"),
        ({"timeout": "nan"}, "MALFORMED"),
        ({"timeout": "inf"}, "MALFORMED"),
        ({"timeout": "soon"}, "MALFORMED"),
        ({"limit": "0"}, "MALFORMED"),
        ({"limit": "1001"}, "MALFORMED"),
        ({"limit": "1000000000"}, "MALFORMED"),
        ({"format": "xml"}, "MALFORMED"),
        ({"connection": "a b"}, "MALFORMED"),
    ],
)
async def test_a_wrong_parameter_is_a_400(running: Gate, query: dict[str, str], code: str) -> None:
    response = await ask(running, RUN, **query)

    assert (response.status_code, response.json()["code"]) == (400, code)
    assert not len(running.gateway.connections)


async def test_more_streams_than_a_cursor_holds_are_refused(running: Gate) -> None:
    assert (await ask(running, *(f"run:{n}" for n in range(33)))).status_code == 400
    assert (await ask(running, "run:1", "run:1")).status_code == 400
    assert (await ask(running, "run:*")).json()["code"] == "INVALID_STREAM"


async def test_who_may_not_read_is_told_so(running: Gate) -> None:
    assert (await ask(running, RUN, jwt="x.y.z")).status_code == 401
    assert (await ask(running, "run:1", "secret:1")).status_code == 403


async def test_a_client_that_leaves_frees_everything_at_once(running: Gate) -> None:
    ids = await publish(running.log, 1)
    async with running.server.client() as client:
        target = f"/api/v1/events/poll?stream=run:1&cursor={ids[0]}&timeout=50"
        await client.get(target, f"Authorization: Bearer {JWT}")
        await eventually(lambda: running.gateway.hub.statistics().live_lanes == 2)

    await eventually(lambda: not len(running.gateway.connections), 2.0)
    assert running.gateway.hub.statistics().subscriptions == 1


async def test_draining_answers_at_once_and_says_come_back(running: Gate) -> None:
    ids = await publish(running.log, 1)
    polling = asyncio.create_task(poll(running, cursor=ids[0], timeout=20))
    await eventually(lambda: running.gateway.hub.statistics().live_lanes == 2)

    await running.gateway.drain(0.0)

    async with deadline(2.0):
        answer = await polling
    assert (answer["events"], answer["cursor"]) == ([], ids[0])
    assert answer["closed"]["code"] == CloseCode.GOING_AWAY
    assert (await ask(running, RUN)).status_code == 503


class Revocable(GrantAuthorizer):
    """Grants that can be taken back."""

    revoked = False

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        return not self.revoked and await super().authorize(principal, action, stream)


async def test_a_revoked_permission_ends_the_waiting() -> None:
    authorizer = Revocable()
    async with gate(authorizer=authorizer) as running:
        ids = await publish(running.log, 1)
        polling = asyncio.create_task(poll(running, cursor=ids[0], timeout=20))
        await eventually(lambda: running.gateway.hub.statistics().live_lanes == 2)

        authorizer.revoked = True

        async with deadline(5.0):
            assert (await polling)["closed"]["code"] == CloseCode.FORBIDDEN


async def test_a_short_token_is_good_for_poll_after_poll(running: Gate) -> None:
    principal = await running.gateway.access.renew(Principal(sub="alice"), JWT)
    short = await running.gateway.access.mint(principal)
    cursor = "0"
    async with httpx.AsyncClient() as client:
        for n in range(1, 4):
            await publish(running.log, 1, first=n)
            query = {"stream": RUN, "cursor": cursor, "sse_token": short}
            response = await client.get(f"{running.server.url}/api/v1/events/poll", params=query)
            assert numbers(response.json()) == [n]
            cursor = response.json()["cursor"]


async def test_a_hundred_polls_wait_for_one_record() -> None:
    log = MemoryLog()
    async with gate(log, max_connections_per_user=0) as running:
        ids = await publish(log, 1)
        polls = [asyncio.create_task(poll(running, cursor=ids[0], timeout=20)) for _ in range(100)]
        await eventually(lambda: running.gateway.hub.statistics().live_lanes == 101, 15.0)

        await publish(log, 1, first=2)

        async with deadline(10.0):
            answers = await asyncio.gather(*polls)
        assert all(numbers(answer) == [2] for answer in answers)
    await log.aclose()


def test_an_answer_is_json() -> None:
    answer = PollAnswer([b'{"a":1}', b'{"b":2}'], "5-1", [], [], CloseCode.ENDED)

    assert json.loads(answer.encode()) == {
        "events": [{"a": 1}, {"b": 2}],
        "cursor": "5-1",
        "gap": None,
        "gaps": [],
        "ended": [],
        "closed": {"control": "closed", "code": 4507, "reason": "ENDED"},
    }


async def test_what_comes_after_the_answer_was_made_is_for_the_next_poll() -> None:
    log = MemoryLog()
    hub = Hub(log, Kinds())
    working = asyncio.create_task(hub.run())
    await hub.wait_running()
    ids = await publish(log, 1)
    sink = PollSink(PollOptions())
    subscription = await hub.open({RUN: ZERO}, sink)
    sink.cursors = dict(subscription.cursors)
    running = asyncio.ensure_future(subscription.run())
    await eventually(lambda: subscription.live and sink.has_news)

    answer = _answer(hub, subscription, sink, running)
    await publish(log, 1, first=2)
    await eventually(lambda: subscription.heads[RUN].seq == 2)

    assert (numbers(json.loads(answer.encode())), answer.cursor) == ([1], ids[0])
    for task in (running, working):
        task.cancel()
    await asyncio.gather(running, working, return_exceptions=True)
    await log.aclose()
