"""An existing store's keys and routes: `run:{id}:events` without prefix and braces, `/runs/{id}/events[/stream]` at the
root, through a gateway and a real Redis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.e2e.harness import Gateway, gateway, token
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import deadline

KINDS = json.dumps({"run": {"key_template": "run:{name}:events", "format": "raw"}})
PRODUCER = token("worker", read=["run:*"], write=["run:*"])
OWNER = token("ada")


class Store:
    """A gateway on the keys of an existing store, and its Redis."""

    def __init__(self, redis: RedisServer, served: Gateway, http: httpx.AsyncClient) -> None:
        self.redis = redis
        self.served = served
        self._http = http

    async def ask(self, method: str, path: str, *, auth: str = PRODUCER, body: Any = None) -> Any:
        """A request at the root that succeeds, and its JSON."""
        answer = await self._http.request(method, path, json=body, headers={"authorization": f"Bearer {auth}"})
        assert answer.is_success, answer.text
        return answer.json()

    async def read(self, path: str, until: str, last_event_id: str = "") -> list[tuple[str, str, Any]]:
        """What an owner's EventSource is given: id, event, data."""
        headers = {"authorization": f"Bearer {OWNER}", "accept": "text/event-stream"}
        headers |= {"last-event-id": last_event_id} if last_event_id else {}
        found: list[tuple[str, str, Any]] = []
        fields: dict[str, str] = {}
        async with deadline(60), self._http.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if line and name:
                    fields[name] = value
                elif "data" in fields:
                    found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
                    if fields["event"] == until:
                        break
                    fields = {}
        return found

    async def keys(self) -> set[str]:
        return set(await self.redis.cli("KEYS", "run:*"))


@pytest.fixture
async def store(start_redis: StartRedis, key_prefix: str, tmp_path: Path) -> AsyncIterator[Store]:
    async with _store(await start_redis(limited=False), key_prefix, tmp_path) as made:
        yield made


@asynccontextmanager
async def _store(redis: RedisServer, prefix: str, folder: Path) -> AsyncIterator[Store]:
    async with (
        gateway(redis, prefix, folder, kinds=KINDS) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as http,
    ):
        yield Store(redis, served, http)


@pytest.mark.slow
async def test_a_run_lives_under_its_old_key_and_is_read_by_its_old_routes(store: Store) -> None:
    made = await store.ask("POST", "/runs", body={"id": "7", "owner": "ada", "kind": "report"})
    epoch = (await store.ask("POST", "/runs/7/claim", body={"producer": "p1"}))["epoch"]
    events = [{"type": "node.output", "data": {"n": n, "id": "mine"}} for n in range(3)]
    stored = await store.ask("POST", f"/runs/7/events?epoch={epoch}", body=events)
    ids = [each["id"] for each in stored["events"]]
    await store.ask("POST", "/runs/7/complete", body={"epoch": epoch, "result": "s3://reports/7"})

    assert made["stream"] == "run:7"
    # The application's own object, unchanged but for the id.
    whole = await store.read("/runs/7/events/stream", "run.completed")
    assert [each for each in whole if each[1] == "node.output"] == [
        (id_, "node.output", {"id": id_, "n": n}) for n, id_ in enumerate(ids)
    ]
    resumed = await store.read("/runs/7/events/stream", "run.completed", last_event_id=ids[1])
    assert [id_ for id_, event, _ in resumed if event == "node.output"] == ids[2:]
    page = await store.ask("GET", f"/runs/7/events?start_id={ids[1]}&end_id={ids[2]}", auth=OWNER)
    assert [each["id"] for each in page["events"]] == ids[1:]
    socket = f"{store.served.url.replace('http', 'ws')}/runs/7/ws?last_id={ids[2]}"
    async with deadline(60), connect(socket, additional_headers={"authorization": f"Bearer {OWNER}"}) as viewer:
        assert json.loads(await viewer.recv())["control"] == "open"
        assert json.loads(await viewer.recv())["result"] == "s3://reports/7"

    assert await store.keys() == {"run:7:events", "run:7:meta", "run:7:uids"}
    entries = await store.redis.cli("XRANGE", "run:7:events", "-", "+")
    assert [id_ for id_, _ in entries][:3] == ids
    assert 0 < await store.redis.cli("TTL", "run:7:events") <= 86_400


@pytest.mark.slow
async def test_what_an_older_program_wrote_there_is_read_by_the_same_routes(store: Store) -> None:
    ids = [
        await store.redis.cli("XADD", "run:old:events", "*", "type", "node.output", "data", json.dumps({"n": n}))
        for n in range(3)
    ]

    page = await store.ask("GET", "/runs/old/events?format=envelope")

    assert [(each["id"], each["type"], each["foreign"]) for each in page["events"]] == [
        (id_, "node.output", True) for id_ in ids
    ]
    after = await store.ask("GET", f"/runs/old/events?since_id={ids[0]}")
    assert [each["id"] for each in after["events"]] == ids[1:]
