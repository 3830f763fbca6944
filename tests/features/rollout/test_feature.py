"""The rollout in a gateway: one process follows and guards, and shows it in /metrics."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tailrace.app import create_gateway
from tailrace.core.names import StreamName
from tailrace.core.rollout import FULL, GuardLimits
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.changing import set_percent
from tailrace.features.rollout.feature import RolloutFeature
from tests.e2e.harness import gateway
from tests.support.gateway import settings_of
from tests.support.redis_servers import StartRedis
from tests.support.wait import eventually

ALERTS = Path(__file__).parents[3] / "deploy" / "alerts"


async def test_a_gateway_shows_how_far_it_is_and_every_metric_of_the_alerts(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    server = await start_redis(limited=False)
    store = RedisRollout(server.url)
    await set_percent(store, "workflow", 10, by="ann", settle_seconds=0.1)
    async with gateway(server, "tailrace:", tmp_path) as served, httpx.AsyncClient() as client:

        async def shown() -> str:
            text = (await client.get(f"{served.url}/metrics")).text
            assert 'tailrace_rollout_percent{kind="workflow"} 10.0' in text
            assert "tailrace_rollout_leader 1.0" in text
            assert 'tailrace_rollout_longest_stream{kind="workflow"}' in text
            return text

        text = await eventually(shown, 60)
    await store.aclose()

    exported = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    exported |= {f"{name}_total" for name in exported} | set(re.findall(r"^(\w+)[ {]", text, re.M))
    asked = set(re.findall(r"tailrace_\w+", (ALERTS / "streams.yml").read_text()))
    assert asked
    assert asked <= exported
    assert re.search(r"tailrace_redis_memory_bytes [1-9]", text)


async def test_a_gateway_that_begins_to_serve_knows_where_streams_are(start_redis: StartRedis) -> None:
    server = await start_redis()
    settings = settings_of(redis_url=server.url)
    feature = RolloutFeature(server.url)
    await set_percent(feature.store, "workflow", FULL, by="ann", settle_seconds=0.0)

    async with feature.running(create_gateway(settings)):
        assert feature.view.reads_stream(StreamName.parse("workflow:w1"))


def test_the_guards_limits_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits() -> GuardLimits:
        gateway = create_gateway(settings_of(redis_url="redis://127.0.0.1:1/0"))
        [rollout] = [feature for feature in gateway.features if isinstance(feature, RolloutFeature)]
        return rollout.limits

    assert limits() == GuardLimits(mismatch=0.01, publish_errors=0.05, lag_seconds=2.0, window_seconds=60.0)
    for name, value in (("MISMATCH", "0.2"), ("PUBLISH_ERRORS", "0.3"), ("LAG_SECONDS", "7")):
        monkeypatch.setenv(f"TAILRACE_ROLLOUT_MAX_{name}", value)
    monkeypatch.setenv("TAILRACE_ROLLOUT_WINDOW_SECONDS", "300")

    assert limits() == GuardLimits(mismatch=0.2, publish_errors=0.3, lag_seconds=7.0, window_seconds=300.0)


def test_the_feature_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    on = create_gateway(settings_of(redis_url="redis://127.0.0.1:1/0"))
    off = create_gateway(settings_of(redis_url="redis://127.0.0.1:1/0", rollout_enabled=False))

    assert "rollout" in {feature.name for feature in on.features}
    assert "rollout" not in {feature.name for feature in off.features}
