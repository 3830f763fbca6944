"""What the routes of one application share, and the workers that keep it alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from tailrace.codes import CloseCode
from tailrace.config import Settings
from tailrace.core.kinds import Kinds
from tailrace.errors import ConfigError, LogError, LogUnavailable, TailraceError
from tailrace.eventlog.base import Log
from tailrace.eventlog.leases import LeaseStore, MemoryLeases
from tailrace.hub.hub import Hub
from tailrace.observe import Metrics
from tailrace.transports.pulse import Pulse
from tailrace.web.auth import Access, Authenticate
from tailrace.web.connections import Connections
from tailrace.web.feature import Feature, FeatureAuthorizer
from tailrace.web.health import Probe
from tailrace.web.origin import ClientAddress, OriginPolicy
from tailrace.web.principal import Authorizer, GrantAuthorizer
from tailrace.web.tokens import TokenVerifier

__all__ = ["Gateway", "GoingAway"]

log = logging.getLogger("tailrace.gateway")


class GoingAway(TailraceError):
    """This process is about to end; another one takes the connection."""

    code = "GOING_AWAY"
    status = 503
    close_code = CloseCode.GOING_AWAY
    retryable = True
    retry_after = 1.0


class Gateway:
    """The state of one application. `running()` owns its workers; before and after, requests are answered 503."""

    def __init__(
        self,
        settings: Settings,
        *,
        open_log: Callable[[Gateway], Coroutine[Any, Any, tuple[Log, LeaseStore]]] | None = None,
        event_log: Log | None = None,
        hub: Hub | None = None,
        leases: LeaseStore | None = None,
        authorizer: Authorizer | None = None,
        authenticate: Authenticate | None = None,
        features: Sequence[Feature] = (),
    ) -> None:
        """Make a gateway for an open log, or with a way to open one when it starts.

        Raises:
            ConfigError: no way to know who asks.
        """
        if event_log is None and open_log is None:
            raise ConfigError("a gateway needs a log, or a way to open one")
        self.settings = settings
        self.features = tuple(features)
        self.kinds: Kinds = settings.stream_kinds()
        self.metrics = Metrics()
        self.pulse = Pulse(settings.heartbeat_seconds)
        self.draining = False
        self.failed: str | None = None
        """The worker whose defect ended this gateway."""
        self.on_crash: Callable[[], None] = _nothing
        """Called when a worker failed: a server of our own ends the process."""
        self._open_log = open_log
        self._log = event_log
        self._hub = hub
        self._owns_log = event_log is None
        self._owns_hub = hub is None
        self._stores = _LateLeases(leases if leases is not None or open_log is not None else MemoryLeases())
        verifier = TokenVerifier(settings) if settings.has_token_key else None
        if verifier is None and authenticate is None:
            raise ConfigError("no key for tokens: set jwt_secret, jwt_key_file, jwt_jwks_file or jwt_jwks_url")
        addresses = ClientAddress(settings.trusted_proxies)
        self.access = Access(
            settings,
            self._stores,
            FeatureAuthorizer(authorizer if authorizer is not None else GrantAuthorizer(), self.features),
            OriginPolicy(settings.cors_origins, settings.allowed_hosts, addresses),
            verifier=verifier,
            authenticate=authenticate,
            on_failure=lambda reason: self.metrics.failed_auth.labels(reason).inc(),
        )
        self.connections = Connections(settings, self._stores, self.access, addresses)
        self.probe = Probe(self.metrics)

    @property
    def log(self) -> Log:
        """The log. Raises: LogUnavailable before the start and after the end."""
        if self._log is None or self._hub is None:
            raise LogUnavailable("the server is starting")
        return self._log

    @property
    def leases(self) -> LeaseStore:
        """What gateways share. Its calls raise LogUnavailable before the start."""
        return cast(LeaseStore, self._stores)

    @property
    def hub(self) -> Hub:
        """The hub. Raises: as `log`, and GoingAway while draining: no new readers."""
        if self.draining:
            raise GoingAway("this server is going away", retry_after=1.0)
        if self._hub is None:
            raise LogUnavailable("the server is starting")
        return self._hub

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open what is needed and own the workers: hub, probe, leases, heartbeats.

        Raises:
            ConfigError, LogError: the log cannot be opened.
        """
        if self._log is None:
            assert self._open_log is not None  # noqa: S101 - the constructor saw to it
            self._log, self._stores.inner = await self._open_log(self)
        if self._hub is None:
            self._hub = Hub(self._log, self.kinds)
        with contextlib.suppress(LogError):
            await self.access.revocations.refresh()
        try:
            async with contextlib.AsyncExitStack() as stack:
                for feature in self.features:
                    await stack.enter_async_context(feature.running(self))
                async with self._working(self._hub):
                    yield
        finally:
            self._hub = None if self._owns_hub else self._hub
            if self._owns_log:
                await self._stores.aclose()
                await self._log.aclose()
                self._log = None

    async def drain(self, seconds: float | None = None) -> None:
        """Take no new readers and send the present ones away, in waves over the window."""
        self.draining = True
        if self._hub is not None:
            await self._hub.drain(self.settings.drain_seconds if seconds is None else seconds)

    @asynccontextmanager
    async def _working(self, hub: Hub) -> AsyncIterator[None]:
        owner = asyncio.create_task(self._work(hub), name="tailrace")
        try:
            yield
        finally:
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)

    async def _work(self, hub: Hub) -> None:
        """Own the workers. A defect in one ends all of them, makes health red, and is told with its name."""
        try:
            async with asyncio.TaskGroup() as group:
                workers: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                    "hub": hub.run,
                    "probe": partial(self.probe.run, self.log, hub),
                    "leases": self.connections.run,
                    "pulse": self.pulse.run,
                }
                for feature in self.features:
                    workers |= {f"{feature.name}.{name}": work for name, work in feature.workers(self).items()}
                for name, work in workers.items():
                    group.create_task(self._named(name, work), name=name)
        except BaseExceptionGroup:
            log.critical("a worker failed", extra={"worker": self.failed}, exc_info=True)
            self.on_crash()

    async def _named(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception:
            self.failed = self.failed or name
            raise
        self.failed = self.failed or name
        raise RuntimeError(f"the worker {name} ended by itself")


class _LateLeases:
    """Stands in for the lease store until the log is open."""

    def __init__(self, inner: LeaseStore | None) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if self.inner is None:
            raise LogUnavailable("the server is starting")
        return getattr(self.inner, name)


def _nothing() -> None:
    pass
