"""The live page on bad days: the connection, the gateway and Redis go away, and every record still arrives once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.leases import MemoryLeases
from tests.browser.conftest import LivePage, OpenPage, open_site
from tests.e2e.harness import Gateway, gateway, token
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

RUN = StreamName.parse("run:1")
AUTH: dict[str, Any] = {"read": ["run:*"], "write": ["run:*"]}


class Rig:
    """A gateway process and its Redis."""

    def __init__(self, redis: RedisServer, served: Gateway, prefix: str) -> None:
        self.redis = redis
        self.gateway = served
        self.prefix = prefix
        self.auth = token("ada", **AUTH)
        self.ids: list[str] = []
        """What was acknowledged."""

    async def publish(self, *datas: Any) -> None:
        """Publish over HTTP."""
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {self.auth}"}, timeout=10) as client:
            body = [{"type": "note", "data": data} for data in datas]
            answer = await client.post(f"{self.gateway.url}/api/v1/streams/{RUN}/events", json=body)
        assert answer.status_code == 201, answer.text
        self.ids += [event["id"] for event in answer.json()["events"]]

    async def watch(self, open_page: OpenPage) -> LivePage:
        """A page that is live on the run and has shown what there is."""
        live = await open_page()
        await live.open(self.gateway.url, RUN, auth=self.auth)
        await live.wait_state("live")
        await live.wait_ids(self.ids)
        return live


@pytest_asyncio.fixture(loop_scope="module")
async def rig(start_redis: StartRedis, key_prefix: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A gateway of the test's own, on a Redis of its own; its short tokens have to be used within two seconds."""
    redis = await start_redis()
    async with gateway(redis, key_prefix, tmp_path, sse_token_seconds="2") as served:
        yield Rig(redis, served, key_prefix)


async def test_killed_gateway_is_survived_by_native_reconnecting(rig: Rig, open_page: OpenPage) -> None:
    await rig.publish(*range(30))
    live = await rig.watch(open_page)

    await rig.gateway.kill()
    await live.wait_state("reconnecting")
    await rig.gateway.start()
    await rig.publish(*range(30, 60))

    await live.wait_ids(rig.ids, 20)
    await live.wait_state("live")
    assert live.minted == 1


async def test_drop_after_the_token_ran_out_is_survived_by_native_reconnecting(rig: Rig, open_page: OpenPage) -> None:
    await rig.publish("early")
    live = await rig.watch(open_page)
    await mint(rig)
    assert len(await tokens(rig)) == 2
    await eventually(lambda: only_the_used_one_is_left(rig), 10, every=0.2)

    await rig.gateway.kill()
    await live.wait_state("reconnecting")
    await rig.gateway.start()
    await rig.publish("late")

    await live.wait_ids(rig.ids, 20)
    assert live.minted == 1


async def mint(rig: Rig) -> None:
    """Make a short token that nobody uses."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {rig.auth}"}) as client:
        answer = await client.post(f"{rig.gateway.url}/api/v1/auth/sse-token")
    assert answer.status_code == 200


async def tokens(rig: Rig) -> list[str]:
    """The short tokens that are good."""
    return list(await rig.redis.cli("KEYS", f"{rig.prefix}short:*"))


async def only_the_used_one_is_left(rig: Rig) -> bool:
    return len(await tokens(rig)) == 1


async def test_drop_61_seconds_after_the_token_was_minted(open_page: OpenPage) -> None:
    shift = [0.0]
    clock: Callable[[], float] = lambda: time.time() + shift[0]  # noqa: E731
    leases = MemoryLeases(clock=clock)
    async with open_site(leases=leases) as site:
        live = await open_page()
        await live.open(site.url, RUN, auth=_local_token())
        await live.wait_state("live")
        await leases.put_token("unused", b"", 60)

        shift[0] = 61.0
        assert await leases.claim_token("unused", "somebody", 300) is None
        site.drop_connections()
        [appended] = await site.log.append(RUN, [Event("note", "after the drop")])

        await live.wait_ids([str(appended.id)])
        assert live.minted == 1
        assert live.opened == 2


def _local_token() -> str:
    from tests.support.tokens import token as sign

    return sign("ada", **AUTH)


async def test_token_that_is_gone_is_minted_again(open_page: OpenPage) -> None:
    shift = [0.0]
    leases = MemoryLeases(clock=lambda: time.time() + shift[0])
    async with open_site(leases=leases) as site:
        live = await open_page()
        await live.open(site.url, RUN, auth=_local_token())
        await live.wait_state("live")
        first = [one.id for one in await site.log.append(RUN, [Event("note", n) for n in range(5)])]
        await live.wait_ids([str(id_) for id_ in first])

        # Cut off for longer than a token is kept: the browser is refused and gives up, the page does not.
        await live.page.context.set_offline(True)
        shift[0] = 3_600.0
        site.drop_connections()
        second = [one.id for one in await site.log.append(RUN, [Event("note", n) for n in range(5, 9)])]
        await live.page.context.set_offline(False)

        await live.wait_ids([str(id_) for id_ in (*first, *second)], 20)
        assert live.minted == 2


async def test_trimmed_history_is_shown_as_a_gap(rig: Rig, open_page: OpenPage) -> None:
    await rig.publish(*range(10))
    [key] = await rig.redis.cli("KEYS", f"{rig.prefix}run:*:events")
    await rig.redis.cli("XTRIM", key, "MAXLEN", 4)

    live = await open_page()
    await live.open(rig.gateway.url, RUN, auth=rig.auth)
    await live.wait_state("live")
    await live.wait_ids(rig.ids[-4:])

    rows = await live.rows()
    assert rows[0].kind == "gap"
    assert rows[0].text.startswith("Gap: 6 records missing")
    assert await live.page.text_content("#count-announced") == "6 announced as lost"


async def test_stopped_redis_is_shown_as_degraded_and_nothing_is_lost(rig: Rig, open_page: OpenPage) -> None:
    await rig.publish("before")
    live = await rig.watch(open_page)

    rig.redis.pause()
    await live.wait_state("degraded", 20)
    rig.redis.resume()

    await live.wait_state("live", 20)
    await rig.publish("after")
    await live.wait_ids(rig.ids)
    assert live.opened == 1
    texts = [row.text for row in await live.rows()]
    assert any("does not answer" in text for text in texts)
    assert any("answers again" in text for text in texts)


async def test_draining_gateway_sends_the_page_to_the_next_one(rig: Rig, open_page: OpenPage) -> None:
    await rig.publish("before")
    live = await rig.watch(open_page)

    await rig.gateway.stop()
    await rig.gateway.start()
    await rig.publish("after")

    await live.wait_ids(rig.ids, 20)
    assert live.minted == 1
