"""The rollout as a feature of a gateway: it knows how far each kind has moved, and its guards may lead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from tailrace.core.rollout import GuardLimits
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.guard import Guard
from tailrace.features.rollout.meters import Meters
from tailrace.features.rollout.view import RolloutView
from tailrace.web.feature import Feature, Worker
from tailrace.web.gateway import Gateway

__all__ = ["RolloutFeature"]


def old_channel(kind: str) -> str:
    """How the old channels of a kind are named where nobody says otherwise."""
    return f"{kind}:{{id}}"


class RolloutFeature(Feature):
    """See the module.

    Args:
        url: of Redis.
        prefix: of the keys.
        enabled: REDIS_STREAM_ENABLED.
        template_of: a kind's old channels, with `{id}`.
        limits: from where on the guards roll back.
    """

    name = "rollout"

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "tailrace:",
        enabled: bool = True,
        template_of: Callable[[str], str] = old_channel,
        limits: GuardLimits | None = None,
    ) -> None:
        self.store = RedisRollout(url, prefix=prefix)
        self.view = RolloutView(self.store, enabled=enabled)
        """For who has to know where a stream is: `mode_of`, `reads_stream`, `count`."""
        self.guard: Guard | None = None
        self._template_of = template_of
        self.limits = limits if limits is not None else GuardLimits()

    def running(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        """See `Feature`."""
        return self._running(gateway)

    @asynccontextmanager
    async def _running(self, gateway: Gateway) -> AsyncIterator[None]:
        del gateway
        try:
            # Who comes before anything is known would hear the old channel only, and never be given the history.
            with suppress(LogUnavailable):
                await self.view.look()
            yield
        finally:
            await self.store.aclose()

    def workers(self, gateway: Gateway) -> Mapping[str, Worker]:
        """See `Feature`."""
        self.guard = Guard(
            self.view,
            gateway.log,
            gateway.hub,
            template_of=self._template_of,
            meters=Meters(gateway.metrics.registry),
            limits=self.limits,
        )
        return {"view": self.view.run, "guard": self.guard.run}
