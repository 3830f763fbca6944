"""What a feature (runs, rollout, …) adds to a gateway: routes, workers, resources, and a say in who may do what."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.routing import BaseRoute

from tailrace.core.cursor import Resume
from tailrace.core.names import StreamName
from tailrace.web.principal import Action, Authorizer, Principal

if TYPE_CHECKING:
    from tailrace.transports.websocket import StreamSocket, WsOptions
    from tailrace.web.gateway import Gateway

__all__ = ["Asked", "Feature", "FeatureAuthorizer", "Worker"]

Worker = Callable[[], Coroutine[Any, Any, None]]


class Asked(msgspec.Struct, frozen=True):
    """What a reader of one stream asks for on its WebSocket."""

    stream: StreamName
    resume: Resume
    format: str | None
    """None: it does not say."""
    conflate: bool
    compact: bool


class Feature:
    """A part on top of the core. A gateway may have several; they do not know each other."""

    name: str
    """Unique, as settings and logs call it."""
    schemas: Mapping[str, Any] = {}
    """Its named schemas in the OpenAPI document."""

    def routes(self, gateway: Gateway) -> Sequence[BaseRoute]:
        """Its routes, below the API's prefix and at the root."""
        del gateway
        return ()

    def running(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        """Own what it needs while the gateway runs. The log is open; the hub is not running yet.

        It must not wait for a database that is away: the gateway starts without it.
        """
        del gateway
        return nullcontext()

    def workers(self, gateway: Gateway) -> Mapping[str, Worker]:
        """What runs as long as the gateway; a worker that ends or fails ends the gateway."""
        del gateway
        return {}

    def without_log(self) -> Mapping[str, Any] | None:
        """Facts for `/readyz`: it serves what it was set to serve where the log can never be. None: it does not."""
        return None

    def socket(self, gateway: Gateway, options: WsOptions, asked: Asked) -> StreamSocket | None:
        """What serves `/streams/{stream}/ws` of a stream of its kind; None: not its kind, the core serves it."""
        del gateway, options, asked
        return None

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """Grant what the token does not grant, e.g. an owner's own run. False: it has nothing to say.

        Asked for every request and again for what is read live; raising an error of tailrace refuses with it.
        """
        del principal, action, stream
        return False


class FeatureAuthorizer:
    """The application's authorizer first, then each feature: one grant is enough."""

    def __init__(self, inner: Authorizer, features: Sequence[Feature]) -> None:
        self._inner = inner
        self._features = [each for each in features if type(each).authorize is not Feature.authorize]

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """See `Authorizer`."""
        if await self._inner.authorize(principal, action, stream):
            return True
        for feature in self._features:
            if await feature.authorize(principal, action, stream):
                return True
        return False
