"""The client without async: threads, forks, interrupts."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

from tailrace import Event, Record, TailraceSync
from tailrace.client.engine import Engine, Engines
from tailrace.errors import AlreadyClosed, Malformed, UsageError
from tailrace.features.runs.events import SyncEventStore
from tests.support.gateways import gateway_on, mint

T = TypeVar("T")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with gateway_on() as (server, _):
        yield server.url


async def with_client(url: str, use: Callable[[TailraceSync], T]) -> T:
    """Use a client in a thread; the gateway runs in this one."""

    def run() -> T:
        with TailraceSync(url, token=mint()) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def test_publish_subscribe_history_and_the_rest(url: str) -> None:
    def use(client: TailraceSync) -> None:
        stored = client.publish("run:1", "note", 1)
        client.publish_many("run:1", [Event("note", 2), Event("note", 3)])
        client.emit("run:1", "note", 4)
        assert client.flush(5)
        with client.subscribe("run:1", since=stored.id) as subscription:
            items = [subscription.next(5) for _ in range(3)]
            with pytest.raises(TimeoutError):
                subscription.next(0.05)
            client.close_stream("run:1")
            rest = list(subscription)
        assert [int(item.data) for item in items if isinstance(item, Record)] == [2, 3, 4]
        assert len(rest) == 1
        assert [int(item.data) for item in client.history("run:1") if isinstance(item, Record)] == [1, 2, 3, 4]
        assert client.info("run:1").length == 4
        with pytest.raises(Malformed):
            client.publish("run:1", "stream.x")

    await with_client(url, use)


async def test_many_threads_share_a_client(url: str) -> None:
    def use(client: TailraceSync) -> int:
        def write(number: int) -> None:
            for n in range(20):
                client.publish(f"run:{number}", "note", n)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(8):
            found = [int(item.data) for item in client.history(f"run:{number}") if isinstance(item, Record)]
            assert found == list(range(20))
        return threading.active_count()

    await with_client(url, use)


# From 3.12 on Python warns of forking with threads; that is what this is about.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_process_gets_connections_of_its_own(url: str) -> None:
    def use(client: TailraceSync) -> int:
        client.publish("run:1", "note", 0)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                client.publish("run:1", "note", 1)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        client.publish("run:1", "note", 2)
        assert [int(item.data) for item in client.history("run:1") if isinstance(item, Record)] == [0, 1, 2]
        return status

    assert await with_client(url, use) == 0


async def test_a_closed_client_says_so_and_leaves_no_thread(url: str) -> None:
    before = threading.active_count()

    def use(client: TailraceSync) -> None:
        client.close()
        client.close()
        with pytest.raises(AlreadyClosed):
            client.publish("run:1", "note")

    await with_client(url, use)

    assert threading.active_count() <= before + 1


class Nothing:
    """A client that does nothing."""

    async def wait(self, begun: threading.Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        pass


def test_a_call_that_waits_in_another_thread_ends_when_the_client_is_closed() -> None:
    engines = Engines(Nothing)
    engine = engines.running()
    begun = threading.Event()
    ended: list[BaseException] = []

    def use() -> None:
        try:
            engine.call(engine.client.wait(begun))
        except AlreadyClosed as exc:
            ended.append(exc)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert begun.wait(60)
    engines.close(Nothing.aclose)
    thread.join(60)

    assert [type(each) for each in ended] == [AlreadyClosed]


def test_what_outlives_its_client_is_told_so() -> None:
    engines = Engines(Nothing)
    engine = engines.running()
    engines.close(Nothing.aclose)

    with pytest.raises(AlreadyClosed):
        engine.call(engine.client.aclose())


@pytest.mark.parametrize("make", [lambda: Engines(Nothing), lambda: SyncEventStore("http://127.0.0.1:1", token="t")])
def test_a_closed_client_that_nobody_has_is_gone(make: Callable[[], Engines[Nothing] | SyncEventStore]) -> None:
    made = make()
    made.close() if isinstance(made, SyncEventStore) else made.close(Nothing.aclose)
    left = weakref.ref(made)

    del made
    gc.collect()

    assert left() is None


def test_the_clients_own_thread_is_refused_instead_of_waiting_for_itself() -> None:
    engines = Engines(Nothing)
    engine: Engine[Nothing] = engines.running()

    async def use() -> None:
        engine.call(engine.client.aclose())

    with pytest.raises(UsageError):
        engine.call(use())
    engines.close(Nothing.aclose)


async def test_a_subscription_that_outlives_its_client_is_closed_with_it(url: str) -> None:
    def use(client: TailraceSync) -> None:
        with client.subscribe("run:1"):
            client.close()

    await with_client(url, use)
