"""Old channels on connections of our own: what is heard, and when it may not have been."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually


class Ear:
    """A running listener and what it heard."""

    def __init__(self, channels: Channels, prefix: str, patterns: tuple[str, ...]) -> None:
        self.channels = channels
        self.heard: list[tuple[bytes, bytes]] = []
        self.links: list[bool] = []
        self.listener = Listener(
            channels,
            prefix=prefix,
            on_message=lambda channel, message: self.heard.append((channel, message)),
            on_link=self.links.append,
            patterns=patterns,
        )

    async def wait_up(self) -> None:
        await eventually(lambda: self.listener.up, 60)


@asynccontextmanager
async def listening(server: RedisServer, prefix: str, *patterns: str) -> AsyncIterator[Ear]:
    # A pattern is allowed only where the login's rights name that very pattern.
    ear = Ear(Channels(server.admin_url if patterns else server.url), prefix, patterns)
    task = asyncio.create_task(ear.listener.run())
    try:
        yield ear
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ear.channels.aclose()


async def test_a_pattern_and_single_channels_are_heard_in_order(every_redis: RedisServer, key_prefix: str) -> None:
    async with listening(every_redis, key_prefix, f"{key_prefix}w:*") as ear:
        await ear.wait_up()
        await ear.listener.subscribe(f"{key_prefix}single", seconds=60)

        for n in range(100):
            await ear.channels.publish(f"{key_prefix}{'single' if n % 3 else 'w:7'}", b"%d" % n, seconds=60)

        await eventually(lambda: len(ear.heard) == 100, 60)
        assert [message for _, message in ear.heard] == [b"%d" % n for n in range(100)]
        assert {channel for channel, _ in ear.heard} == {f"{key_prefix}single".encode(), f"{key_prefix}w:7".encode()}


async def test_what_others_say_on_the_probes_channel_ends_no_listener(
    redis70: RedisServer, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.eventlog.redis.pubsub.PROBE_SECONDS", 0.02)
    async with listening(redis70, key_prefix) as ear:
        await ear.wait_up()
        await ear.listener.subscribe(f"{key_prefix}a", seconds=60)
        [probe] = [each for each in await redis70.cli("PUBSUB", "CHANNELS", f"{key_prefix}*") if each[-2:] != ":a"]

        await redis70.cli("PUBLISH", probe, "hello")

        for _ in range(500):
            assert await ear.channels.publish(f"{key_prefix}a", b"1", seconds=60) == 1
        await eventually(lambda: len(ear.heard) == 500, 60)


async def test_what_is_not_wanted_any_more_is_not_heard(redis70: RedisServer, key_prefix: str) -> None:
    async with listening(redis70, key_prefix) as ear:
        await ear.wait_up()
        await ear.listener.subscribe(f"{key_prefix}a", seconds=60)
        ear.listener.unsubscribe(f"{key_prefix}a")
        await ear.listener.subscribe(f"{key_prefix}b", seconds=60)

        assert await ear.channels.publish(f"{key_prefix}a", b"1", seconds=60) == 0
        assert await ear.channels.publish(f"{key_prefix}b", b"2", seconds=60) == 1


async def killed(server: RedisServer) -> None:
    await server.restart()


async def cut(server: RedisServer) -> None:
    await server.cli("CLIENT", "KILL", "TYPE", "pubsub")


@pytest.mark.parametrize("harm", [killed, cut])
async def test_a_lost_link_is_told_and_every_subscription_comes_back(
    start_redis: StartRedis, key_prefix: str, harm: Callable[[RedisServer], object]
) -> None:
    server = await start_redis()
    async with listening(server, key_prefix, f"{key_prefix}w:*") as ear:
        await ear.wait_up()
        await ear.listener.subscribe(f"{key_prefix}a", seconds=60)

        await harm(server)  # type: ignore[misc]

        await eventually(lambda: ear.links == [True, False, True], 60)
        assert await ear.channels.publish(f"{key_prefix}a", b"1", seconds=60) == 1
        assert await ear.channels.publish(f"{key_prefix}w:1", b"2", seconds=60) == 1
        await eventually(lambda: [message for _, message in ear.heard] == [b"1", b"2"], 60)


async def test_who_cannot_be_given_a_channel_takes_it_from_nobody_else(
    start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    async with listening(server, key_prefix) as ear:
        await ear.wait_up()
        await ear.listener.subscribe(f"{key_prefix}a", seconds=60)
        server.pause()
        await eventually(lambda: not ear.listener.up, 60)
        with pytest.raises(LogUnavailable):
            await ear.listener.subscribe(f"{key_prefix}a", seconds=60)
        server.resume()
        await ear.wait_up()

        assert await ear.channels.publish(f"{key_prefix}a", b"1", seconds=60) == 1
        await eventually(lambda: [message for _, message in ear.heard] == [b"1"], 60)


async def test_a_connection_that_stays_open_but_says_nothing_is_found_out(
    start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    async with listening(server, key_prefix) as ear:
        await ear.wait_up()

        server.pause()
        await eventually(lambda: ear.links == [True, False], 60)
        server.resume()

        await eventually(lambda: ear.links[-1], 60)


async def test_a_channel_that_the_login_may_not_hear_is_an_error(start_redis: StartRedis, key_prefix: str) -> None:
    server = await start_redis(limited=False)
    await server.cli("ACL", "SETUSER", "default", "resetchannels", f"&{key_prefix}*")
    async with listening(server, key_prefix) as ear:
        await ear.wait_up()

        with pytest.raises(LogUnavailable):
            await ear.listener.subscribe("foreign", seconds=60)

        await ear.wait_up()


async def test_a_defect_of_who_listens_ends_the_listener(redis70: RedisServer, key_prefix: str) -> None:
    def fail(channel: bytes, message: bytes) -> None:
        raise ZeroDivisionError

    channels = Channels(redis70.admin_url)
    listener = Listener(channels, prefix=key_prefix, on_message=fail, on_link=lambda up: None, patterns=["x*"])
    task = asyncio.create_task(listener.run())
    await eventually(lambda: listener.up, 60)

    await channels.publish("x", b"", seconds=60)

    with pytest.raises(ZeroDivisionError):
        await task
    await channels.aclose()
