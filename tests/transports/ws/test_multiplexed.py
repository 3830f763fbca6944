"""`/ws` on a real server: commands, replies, records, and ends."""

from __future__ import annotations

import json
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tailrace.codes import CloseCode
from tailrace.core.names import StreamName
from tailrace.web.principal import Action, GrantAuthorizer, Principal
from tests.support.tokens import token
from tests.support.wait import eventually
from tests.support.ws import Gate, gate, publish

RUN = StreamName.parse("run:1")


def numbers(records: list[Any]) -> list[int]:
    return [record["data"]["n"] for record in records]


async def test_history_then_live_each_record_once() -> None:
    async with gate() as running, running.wire() as wire:
        ids = await publish(running.log, 5)

        reply = await wire.ask("subscribe", stream=RUN)
        ids += await publish(running.log, 5, first=6)

        assert reply["streams"] == {RUN: {"cursor": "0-0", "head": ids[4]}}
        records = await wire.records(10)
        assert [record["id"] for record in records] == ids
        assert [record["prev"] for record in records] == ["0-0", *ids[:-1]]


async def test_the_server_lends_the_connection() -> None:
    async with gate() as running, running.wire() as wire:
        await wire.ask("ping")

        channels = [getattr(each, "channel", None) for each in running.server.server.server_state.connections]

        assert sum(channel is not None for channel in channels) == 1


async def test_a_cursor_resumes_behind_itself() -> None:
    async with gate() as running, running.wire() as wire:
        ids = await publish(running.log, 5)

        await wire.ask("subscribe", stream=RUN, last_id=ids[2])

        assert numbers(await wire.records(2)) == [4, 5]


async def test_a_cursor_that_is_not_of_this_history_gets_a_gap() -> None:
    async with gate() as running, running.wire() as wire:
        await publish(running.log, 2)

        await wire.ask("subscribe", stream=RUN, last_id="9999999999999-77")

        gap = await wire.get()
        assert (gap["control"], gap["reason"], gap["after"]) == ("gap", "ahead", "9999999999999-77")
        assert numbers(await wire.records(2)) == [1, 2]


async def test_many_streams_share_a_connection_and_keep_their_orders() -> None:
    names = [f"run:{n}" for n in range(500)]
    async with gate() as running, running.wire() as wire:
        for name in names[:250]:
            await publish(running.log, 1, name)

        await wire.say("subscribe", streams=dict.fromkeys(names, ""))
        reply = await wire.get()
        for name in names:
            await publish(running.log, 2, name, first=2)

        assert len(reply["streams"]) == 500
        seen: dict[str, list[int]] = {}
        for record in await wire.records(1_250):
            seen.setdefault(record["stream"], []).append(record["data"]["n"])
        assert all(seen[name] == ([1, 2, 3] if int(name[4:]) < 250 else [2, 3]) for name in names)
        refused = await wire.ask("subscribe", stream="run:500")
        assert refused["error"]["code"] == "TOO_LARGE"


async def test_an_unsubscribed_stream_is_silent_and_its_neighbour_goes_on() -> None:
    async with gate() as running, running.wire() as wire:
        await wire.ask("subscribe", streams={"run:1": "", "run:2": ""})

        await wire.ask("unsubscribe", stream="run:1")
        await publish(running.log, 1, "run:1")
        await publish(running.log, 1, "run:2")

        assert (await wire.records(1))[0]["stream"] == "run:2"
        await wire.ask("subscribe", stream="run:1")
        assert (await wire.records(1))[0]["stream"] == "run:1"


async def test_an_ended_stream_is_told_and_the_connection_lives() -> None:
    async with gate() as running, running.wire() as wire:
        await publish(running.log, 1)
        await wire.ask("subscribe", streams={"run:1": "", "run:2": ""})
        await wire.records(1)

        await running.log.close(RUN)

        ended = await wire.get()
        assert (ended["control"], ended["stream"], ended["code"]) == ("closed", RUN, CloseCode.ENDED)
        await publish(running.log, 1, "run:2")
        assert numbers(await wire.records(1)) == [1]
        again = await wire.ask("subscribe", stream=RUN, last_id=ended["at"])
        assert again["streams"][RUN]["cursor"] == ended["at"]
        assert (await wire.get())["control"] == "closed"


async def test_publish_answers_with_what_the_log_acknowledged() -> None:
    async with gate() as running, running.wire() as wire:
        reply = await wire.ask("publish", stream=RUN, events=[{"type": "a", "data": {"n": 1}}, {"type": "b"}])

        page = await running.log.range(RUN)
        assert [event["id"] for event in reply["events"]] == [str(record.id) for record in page.records]
        assert [event["duplicate"] for event in reply["events"]] == [False, False]


async def test_a_uid_is_stored_once() -> None:
    event = {"type": "a", "uid": "u-1"}
    async with gate() as running, running.wire() as wire:
        first = await wire.ask("publish", stream=RUN, events=event)
        again = await wire.ask("publish", stream=RUN, events=event)

        assert again["events"] == [{**first["events"][0], "duplicate": True}]


async def test_appends_of_one_connection_keep_their_order() -> None:
    async with gate() as running, running.wire() as wire:
        for n in range(50):
            await wire.say("publish", stream=RUN, events={"type": "tick", "data": {"n": n}})
        await wire.many(50)

        page = await running.log.range(RUN)
        assert [json.loads(record.data)["n"] for record in page.records] == list(range(50))


@pytest.mark.parametrize(
    ("fields", "code", "status"),
    [
        ({"stream": "run:closed", "events": {"type": "a"}}, "STREAM_CLOSED", 409),
        ({"stream": "user:bob", "events": {"type": "a"}}, "FORBIDDEN", 403),
        ({"stream": "run:1\n", "events": {"type": "a"}}, "INVALID_STREAM", 400),
        ({"stream": "run:1", "events": {"type": "a\r\nid: 7"}}, "MALFORMED", 400),
        ({"stream": "run:1", "events": {"type": "a", "data": "x" * 50_000}}, "TOO_LARGE", 413),
    ],
)
async def test_a_publish_that_fails_says_why_and_stores_nothing(fields: Any, code: str, status: int) -> None:
    async with gate(max_event_bytes=40_000) as running, running.wire() as wire:
        closed = StreamName.parse("run:closed")
        await publish(running.log, 1, closed)
        await running.log.close(closed)

        reply = await wire.ask("publish", **fields)

        assert (reply["error"]["code"], reply["error"]["status"]) == (code, status)
        assert (await wire.ask("ping"))["reply"]
        assert not (await running.log.range(RUN)).records


@pytest.mark.parametrize(
    "message",
    ["", "nonsense", "[]", '{"cmd":"drop tables","id":1}', '{"id":1}', '{"cmd":"subscribe","id":1}', "[" * 60_000],
)
async def test_an_unknown_command_is_an_error_and_the_connection_lives(message: str) -> None:
    async with gate() as running, running.wire() as wire:
        await wire.socket.send(message)

        assert (await wire.get())["error"]["code"] == "MALFORMED"
        assert (await wire.ask("ping"))["reply"]


async def test_a_binary_message_is_no_command() -> None:
    async with gate() as running, running.wire() as wire:
        await wire.socket.send(b'{"cmd":"ping","id":1}')

        assert (await wire.get())["error"]["code"] == "MALFORMED"


async def test_presence_counts_the_readers() -> None:
    async with gate() as running, running.wire() as wire, running.wire() as other:
        await wire.ask("subscribe", stream=RUN)
        await other.ask("subscribe", stream=RUN)

        assert (await wire.ask("presence", stream=RUN))["readers"] == 2
        assert (await wire.ask("presence", stream="secret:1"))["error"]["code"] == "FORBIDDEN"


async def test_ack_answers_what_is_left() -> None:
    async with gate() as running, running.wire() as wire:
        ids = await publish(running.log, 3)
        await wire.ask("subscribe", stream=RUN)
        await wire.records(3)

        assert (await wire.ask("ack", stream=RUN, last_id=ids[0]))["unacknowledged"] == 2


async def test_too_many_commands_are_refused_and_then_the_connection_is_closed() -> None:
    async with gate(commands_per_minute=3) as running, running.wire() as wire:
        for _ in range(3):
            await wire.ask("ping")

        assert (await wire.ask("ping"))["error"]["code"] == "RATE_LIMITED"
        for _ in range(70):
            await wire.say("ping")
        assert (await wire.closed())[0] == CloseCode.LIMITED


# -- permissions and tokens --------------------------------------------------------------------------------


class Revocable(GrantAuthorizer):
    """Grants that can be taken back."""

    def __init__(self) -> None:
        self.revoked: set[StreamName] = set()

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        return stream not in self.revoked and await super().authorize(principal, action, stream)


async def test_a_revoked_permission_ends_one_stream_within_five_seconds() -> None:
    authorizer = Revocable()
    async with gate(authorizer=authorizer) as running, running.wire() as wire:
        await wire.ask("subscribe", streams={"run:1": "", "run:2": ""})

        authorizer.revoked.add(RUN)

        told = await wire.get(5.0)
        assert (told["control"], told["stream"], told["code"]) == ("unsubscribed", RUN, CloseCode.FORBIDDEN)
        await publish(running.log, 1, "run:1")
        await publish(running.log, 1, "run:2")
        assert (await wire.records(1))[0]["stream"] == "run:2"


async def test_a_revoked_user_is_sent_away() -> None:
    async with gate(recheck_seconds=0.1) as running, running.wire() as wire:
        await running.gateway.access.revocations.revoke(sub="alice")

        assert (await wire.closed())[0] == CloseCode.UNAUTHORIZED


async def test_a_token_that_runs_out_ends_the_connection() -> None:
    async with short_lived() as running, running.wire(jwt=token(exp=_soon())) as wire:
        assert (await wire.closed(10.0))[0] == CloseCode.TOKEN_EXPIRED


async def test_a_newer_token_keeps_the_connection() -> None:
    async with short_lived() as running, running.wire(jwt=token(exp=_soon())) as wire:
        begun = time.time()
        reply = await wire.ask("auth", token=token(read=["run:*"]))
        assert reply["expires_at"] > _soon() + 3_000

        await wire.ask("subscribe", stream=RUN)
        await eventually(lambda: time.time() > begun + 2.5, every=0.1)
        await publish(running.log, 1)
        assert numbers(await wire.records(1)) == [1]


@pytest.mark.parametrize(("jwt", "code"), [("no.token.atall", "UNAUTHORIZED"), (token("bob"), "FORBIDDEN")])
async def test_a_token_that_proves_nothing_changes_nothing(jwt: str, code: str) -> None:
    async with gate() as running, running.wire() as wire:
        assert (await wire.ask("auth", token=jwt))["error"]["code"] == code
        assert "streams" in await wire.ask("subscribe", stream=RUN)


def short_lived() -> AbstractAsyncContextManager[Gate]:
    return gate(recheck_seconds=0.1, jwt_leeway_seconds=0)


def _soon() -> int:
    return int(time.time()) + 2


# -- ends --------------------------------------------------------------------------------------------------


async def test_draining_says_when_to_come_back() -> None:
    async with gate() as running, running.wire() as wire:
        await wire.ask("subscribe", stream=RUN)

        await running.gateway.drain(0.0)

        told = await wire.get()
        assert (told["control"], told["code"]) == ("closed", CloseCode.GOING_AWAY)
        assert told["retry_after"] > 0
        assert await wire.closed() == (CloseCode.GOING_AWAY, "GOING_AWAY")


async def test_a_client_that_leaves_frees_everything() -> None:
    async with gate() as running:
        async with running.wire() as wire:
            await wire.ask("subscribe", streams={"run:1": "", "run:2": ""})
            assert running.gateway.hub.statistics().lanes >= 2
            wire.socket.transport.abort()

        await eventually(lambda: _is_free(running))


async def test_an_idle_connection_gets_heartbeats_and_ends_when_none_is_answered() -> None:
    async with gate(heartbeat_seconds=0.2) as running, running.wire() as wire:
        assert json.loads(await wire.socket.recv()) == {"control": "ping"}

        assert (await wire.closed())[0] == CloseCode.SLOW


async def test_answered_heartbeats_keep_an_idle_connection() -> None:
    async with gate(heartbeat_seconds=0.1) as running, running.wire() as wire:
        for _ in range(12):
            assert json.loads(await wire.socket.recv()) == {"control": "ping"}
            await wire.socket.send('{"cmd":"pong"}')

        assert (await wire.ask("ping"))["reply"]


def _is_free(running: Gate) -> bool:
    statistics = running.gateway.hub.statistics()
    return not len(running.gateway.connections) and statistics.live_lanes == 1 and statistics.subscriptions == 1
