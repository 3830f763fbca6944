"""`…/ws` on one stream: it just sends records."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tailrace.codes import CloseCode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.web.principal import Action, GrantAuthorizer, Grants, Principal
from tests.support.wait import eventually
from tests.support.ws import gate, publish

RUN = StreamName.parse("run:1")
PATH = "/streams/run:1/ws"


async def test_history_then_live_then_the_end() -> None:
    async with gate() as running:
        ids = await publish(running.log, 2)
        async with running.wire(PATH) as wire:
            assert [record["id"] for record in await wire.records(2)] == ids
            ids += await publish(running.log, 1)
            assert [record["id"] for record in await wire.records(1)] == ids[2:]

            await running.log.close(RUN)

            ended = await wire.get()
            assert (ended["control"], ended["at"], ended["state"]) == ("closed", ids[2], "closed")
            assert await wire.closed() == (CloseCode.ENDED, "ENDED")


async def test_the_first_message_says_where_the_reader_is() -> None:
    async with gate() as running:
        ids = await publish(running.log, 3)
        async with running.wire(f"{PATH}?last_id={ids[1]}", opened=False) as wire:
            opened = await wire.get()

            assert opened["streams"] == {RUN: {"cursor": ids[1], "head": ids[2]}}
            assert [record["id"] for record in await wire.records(1)] == ids[2:]


@pytest.mark.parametrize("name", ["last_id", "last_event_id"])
async def test_a_finished_stream_is_told_at_once_to_who_has_all_of_it(name: str) -> None:
    async with gate() as running:
        ids = await publish(running.log, 3)
        await running.log.close(RUN)
        async with running.wire(f"{PATH}?{name}={ids[2]}") as wire:
            assert (await wire.get())["code"] == CloseCode.ENDED
            assert (await wire.closed())[0] == CloseCode.ENDED


async def test_raw_records_are_the_applications_objects_with_their_id() -> None:
    async with gate() as running:
        ids = await publish(running.log, 1)
        async with running.wire(f"{PATH}?format=raw") as wire:
            assert await wire.get() == {"id": ids[0], "n": 1}


async def test_a_lagging_reader_may_ask_for_the_latest_of_each_key() -> None:
    async with gate() as running:
        events = [Event("progress", {"n": n}, key=f"task-{n % 2}") for n in range(1, 7)]
        await running.log.append(RUN, events)
        async with running.wire(f"{PATH}?conflate=1") as wire:
            assert [record["data"]["n"] for record in await wire.records(2)] == [5, 6]


async def test_a_stream_that_starts_now_sends_no_history() -> None:
    async with gate() as running:
        await publish(running.log, 3, "user:alice")
        async with running.wire("/streams/user:alice/ws") as wire:
            await publish(running.log, 1, "user:alice", first=4)

            assert [record["data"]["n"] for record in await wire.records(1)] == [4]


async def test_what_the_client_says_is_ignored_but_not_without_end() -> None:
    async with gate(commands_per_minute=5) as running, running.wire(PATH) as wire:
        await wire.socket.send("hello")
        await publish(running.log, 1)
        await wire.records(1)

        for _ in range(100):
            await wire.socket.send("hello")
        assert (await wire.closed())[0] == CloseCode.LIMITED


class Revocable(GrantAuthorizer):
    """Grants that can be taken back."""

    revoked = False

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        return not self.revoked and await super().authorize(principal, action, stream)


async def test_a_revoked_permission_closes_with_a_code_that_says_stay_away() -> None:
    authorizer = Revocable()
    async with gate(authorizer=authorizer) as running, running.wire(PATH) as wire:
        authorizer.revoked = True

        told = await wire.get(5.0)
        assert (told["control"], told["code"]) == ("closed", CloseCode.FORBIDDEN)
        assert "retry_after" not in told
        assert (await wire.closed())[0] == CloseCode.FORBIDDEN


async def test_a_token_in_use_is_replaced_by_the_newest_connection() -> None:
    async with gate() as running:
        short = await running.gateway.access.mint(_alice())
        options: dict[str, Any] = {"headers": {"Authorization": ""}}
        path = f"{PATH}?sse_token={short}"
        async with running.wire(path, **options) as first, running.wire(path, **options) as second:
            assert (await first.closed())[0] == CloseCode.REPLACED

            await publish(running.log, 1)
            assert len(await second.records(1)) == 1


async def test_a_record_of_a_megabyte_passes() -> None:
    async with gate() as running, running.wire(PATH, max_size=None) as wire:
        await publish(running.log, 3, size=1_000_000)

        assert [record["data"]["n"] for record in await wire.records(3)] == [1, 2, 3]


async def test_a_client_that_leaves_frees_everything() -> None:
    async with gate() as running:
        async with running.wire(PATH) as wire:
            assert running.gateway.connections.count_by_transport() == {"websocket": 1}
            wire.socket.transport.abort()

        await eventually(lambda: not len(running.gateway.connections))
        assert running.gateway.hub.statistics().subscriptions == 1, "the probe's own"


async def test_heartbeats_go_to_who_hears_nothing_else() -> None:
    async with gate(heartbeat_seconds=0.1) as running, running.wire(PATH) as wire:
        for _ in range(8):
            assert json.loads(await wire.socket.recv()) == {"control": "ping"}

        await publish(running.log, 1)
        assert len(await wire.records(1)) == 1


def _alice() -> Principal:
    return Principal(sub="alice", grants=Grants(read=frozenset({"run:*"})))
