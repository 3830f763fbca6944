"""The composition root: settings in, an ASGI application out; or routes for an application of somebody else.

app = create_app(load_settings())                                  # an application of our own

gateway = create_gateway(settings, authenticate=who_asks, authorizer=MyAuthorizer())
app = FastAPI(lifespan=lifespan_of(gateway, my_lifespan))          # inside of another
app.include_router(tailrace_router(gateway), prefix="/live")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import tailrace
from tailrace.config import Settings
from tailrace.core.rollout import GuardLimits
from tailrace.errors import ConfigError
from tailrace.eventlog.base import Log
from tailrace.eventlog.leases import LeaseStore
from tailrace.hub.hub import Hub
from tailrace.observe import redact_servers
from tailrace.web import openapi
from tailrace.web.auth import Authenticate
from tailrace.web.feature import Feature
from tailrace.web.gateway import Gateway
from tailrace.web.live import live_router
from tailrace.web.poll_routes import poll_router
from tailrace.web.principal import Authorizer
from tailrace.web.problems import ProblemRoute, install_handlers
from tailrace.web.shell import Shell
from tailrace.web.static import StaticFolder
from tailrace.web.status import health_router, status_router
from tailrace.web.streams import streams_router
from tailrace.web.tokenroutes import token_router
from tailrace.web.ws_routes import ws_router

if TYPE_CHECKING:
    from tailrace.features.workflow.publisher import WorkflowPublisher

__all__ = ["create_app", "create_gateway", "lifespan_of", "open_workflow_publisher", "tailrace_router"]

_WEB = Path(__file__).parent / "web"


def create_gateway(
    settings: Settings,
    *,
    log: Log | None = None,
    hub: Hub | None = None,
    leases: LeaseStore | None = None,
    authorizer: Authorizer | None = None,
    authenticate: Authenticate | None = None,
    features: Sequence[Feature] | None = None,
) -> Gateway:
    """Make the state that routes share.

    Args:
        settings: see `tailrace.config`.
        log: an open log that the caller closes; without it one is opened from `settings.redis_url` at the start.
        hub: a hub on that log, run by the gateway; without it one is made.
        leases: shared counts of connections; with a log of your own they are this process's without it.
        authorizer: decides who may do what; without it the grants in the token decide.
        authenticate: knows who asks without a token, e.g. by the application's session.
        features: parts on top of the core; without them those that the settings switch on.

    Raises:
        ConfigError: the settings cannot work.
    """
    if log is None and settings.redis_url is None:
        raise ConfigError("redis_url is not set: say where the log lives, or use `tailrace dev`")
    return Gateway(
        settings,
        open_log=None if log is not None else _open_redis,
        event_log=log,
        hub=hub,
        leases=leases,
        authorizer=authorizer,
        authenticate=authenticate,
        features=_features(settings) if features is None else features,
    )


def _features(settings: Settings) -> list[Feature]:
    """The features that the settings switch on."""
    features: list[Feature] = []
    reads_stream = on_fallback = None
    if settings.rollout_enabled and settings.redis_url is not None:
        from tailrace.features.rollout.feature import RolloutFeature

        url = settings.redis_url.get_secret_value()
        channels = {"workflow": settings.workflow_channel}
        rollout = RolloutFeature(
            url,
            prefix=settings.key_prefix,
            enabled=settings.redis_stream_enabled,
            template_of=lambda kind: channels.get(kind, f"{kind}:{{id}}"),
            limits=GuardLimits(
                mismatch=settings.rollout_max_mismatch,
                publish_errors=settings.rollout_max_publish_errors,
                lag_seconds=settings.rollout_max_lag_seconds,
                window_seconds=settings.rollout_window_seconds,
            ),
        )
        features.append(rollout)
        on_fallback = partial(rollout.view.count, fallbacks=1)
        if settings.workflow_mode == "rollout":
            reads_stream = rollout.view.reads_stream
    if settings.runs_enabled:
        from tailrace.features.runs.feature import RunsFeature

        features.append(RunsFeature(settings))
    if settings.workflows_enabled:
        from tailrace.features.workflow.feature import WorkflowFeature

        features.append(WorkflowFeature(reads_stream, on_fallback=on_fallback))
    return features


@asynccontextmanager
async def open_workflow_publisher(settings: Settings, **options: Any) -> AsyncIterator[WorkflowPublisher]:
    """Make a publisher that goes where `tailrace rollout` says, and reports to its guards how publishing goes.

    `options` as of `WorkflowPublisher.of`. Entering waits a moment for what Redis knows of the rollout, not for a
    Redis that is away: until it answers the old channels are used.

    Raises:
        ConfigError: `redis_url` is not set, or something cannot be used.
    """
    from tailrace.eventlog.redis.rollout import RedisRollout
    from tailrace.features.rollout.view import RolloutView
    from tailrace.features.workflow.message import KIND
    from tailrace.features.workflow.publisher import WorkflowPublisher

    if settings.redis_url is None:
        raise ConfigError("redis_url is not set: say where the log lives")
    store = RedisRollout(settings.redis_url.get_secret_value(), prefix=settings.key_prefix)
    view = RolloutView(store, enabled=settings.redis_stream_enabled)
    try:
        async with WorkflowPublisher.of(settings, mode=view.mode_of, **options) as publisher:
            counts = publisher.counts
            view.follow_counts(KIND, lambda: (counts.appended + counts.append_errors, counts.append_errors))
            async with view.running():
                yield publisher
    finally:
        await store.aclose()


async def _open_redis(gateway: Gateway) -> tuple[Log, LeaseStore]:
    from tailrace.eventlog.redis.leases import RedisLeases
    from tailrace.eventlog.redis.log import RedisLog

    settings = gateway.settings
    assert settings.redis_url is not None  # noqa: S101 - create_gateway saw to it
    redis = RedisLog.connect(
        settings.redis_url.get_secret_value(),
        kinds=gateway.kinds,
        prefix=settings.key_prefix,
        deadline=settings.log_timeout_seconds,
        delivery=settings.delivery,
    )
    return redis, RedisLeases(redis.topology, prefix=settings.key_prefix)


def tailrace_router(gateway: Gateway) -> APIRouter:
    """The API's routes, for `include_router` in any FastAPI application. Run the gateway with `lifespan_of`."""
    router = APIRouter(route_class=ProblemRoute)
    # One flat list, the busiest first: routes are matched one by one.
    for part in (live_router, streams_router, poll_router, ws_router, token_router, health_router):
        router.routes.extend(part(gateway).routes)
    for feature in gateway.features:
        router.routes.extend(feature.routes(gateway))
    return router


def lifespan_of(
    gateway: Gateway, inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """A lifespan that runs the gateway around the application's own."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        redact_servers()
        async with gateway.running():
            if inner is None:
                yield
                return
            async with inner(app) as state:
                yield state

    return lifespan


def create_app(
    settings: Settings | None = None,
    *,
    log: Log | None = None,
    hub: Hub | None = None,
    leases: LeaseStore | None = None,
    authorizer: Authorizer | None = None,
    authenticate: Authenticate | None = None,
    features: Sequence[Feature] | None = None,
    gateway: Gateway | None = None,
) -> FastAPI:
    """Make the whole application: API below the prefix and at the root, health, metrics, docs, the live page.

    Arguments as `create_gateway`, or a gateway that was made before. The gateway is `app.state.gateway`.

    Raises:
        ConfigError: the settings cannot work.
    """
    if gateway is None:
        if settings is None:
            raise ConfigError("create_app needs settings or a gateway")
        gateway = create_gateway(
            settings,
            log=log,
            hub=hub,
            leases=leases,
            authorizer=authorizer,
            authenticate=authenticate,
            features=features,
        )
    settings = gateway.settings
    app = _application(gateway)
    app.state.gateway = gateway
    install_handlers(app)
    app.add_middleware(Shell, origins=gateway.access.origins, metrics=gateway.metrics, cors=bool(settings.cors_origins))
    app.include_router(tailrace_router(gateway), prefix=settings.api_prefix)
    app.include_router(status_router(gateway))
    if settings.api_prefix:
        app.include_router(tailrace_router(gateway), include_in_schema=False)
    _describe(app, gateway)
    app.router.default = _static(settings)
    return app


def _application(gateway: Gateway) -> FastAPI:
    settings = gateway.settings
    return FastAPI(
        title="tailrace",
        version=tailrace.__version__,
        summary="Durable, resumable, live event streams.",
        lifespan=lifespan_of(gateway),
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=openapi.TAGS,
        # Spans would hold the query, and with it a short token.
        telemetry={"exclude": _carries_token},
    )


def _carries_token(scope: Scope) -> bool:
    return b"token=" in scope.get("query_string", b"")


def _describe(app: FastAPI, gateway: Gateway) -> None:
    """Say in the OpenAPI document how requests prove themselves, and nothing that is not so."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        schemas = {name: schema for feature in gateway.features for name, schema in feature.schemas.items()}
        document["components"] = {"securitySchemes": openapi.security_schemes(), "schemas": schemas}
        document["security"] = [{"bearer": []}]
        for path, operations in document["paths"].items():
            for operation in operations.values():
                # FastAPI's own answer to bad parameters; ours are problems with status 400.
                operation["responses"].pop("422", None)
                if "health" in operation.get("tags", ()):
                    operation["security"] = []
                elif path.endswith(("/stream", "/poll")):
                    operation["security"] = [{"bearer": []}, {"sse_token": []}]
        return document

    app.openapi = described  # type: ignore[method-assign]


def _static(settings: Settings) -> Callable[[Scope, Receive, Send], Any]:
    """What answers when no route matches: a file of our pages, else 404."""
    page, docs = StaticFolder(_WEB / "page"), StaticFolder(_WEB / "docs")

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        request = Request(scope, receive)
        path = request.url.path.removeprefix(scope.get("root_path", ""))
        response: Response | None = None
        if request.method in ("GET", "HEAD"):
            if settings.docs_enabled and path == "/docs/":
                response = Response(status_code=307, headers={"Location": f"{scope.get('root_path', '')}/docs"})
            elif settings.docs_enabled and (path == "/docs" or path.startswith("/docs/")):
                response = await docs.answer(request, path.removeprefix("/docs").lstrip("/"))
            elif settings.page_enabled:
                response = await page.answer(request, path.lstrip("/"))
        if response is None:
            raise HTTPException(404)
        await response(scope, receive, send)

    return default
