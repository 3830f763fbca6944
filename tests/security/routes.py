"""Every route of the application with all features, asked of the application itself, so that none can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import WebSocketRoute

from tailrace.app import create_app
from tests.support.gateway import settings_of

__all__ = ["PREFIX", "Where", "all_routes", "whole_app", "wheres"]

PREFIX = "/api/v1"


class Where(NamedTuple):
    """A method and a path pattern; a WebSocket's method is WS."""

    method: str
    path: str

    @property
    def rule(self) -> tuple[str, str]:
        """What it is below the prefix: the API is mounted twice, with the same rules."""
        return self.method, self.path.removeprefix(PREFIX)

    def takes(self, stream: str) -> bool:
        """Whether it can be asked about a stream: a run's routes know runs only."""
        return "{run_id}" not in self.path or stream.startswith("run:")

    def at(self, stream: str) -> str:
        """Its path for a stream."""
        return self.path.replace("{stream}", stream).replace("{run_id}", stream.partition(":")[2])


def whole_app() -> FastAPI:
    """The application with every feature on; to be asked, not to be served."""
    given = settings_of(
        redis_url="redis://127.0.0.1:1", runs_enabled=True, rollout_enabled=True, workflows_enabled=True
    )
    return create_app(given)


@cache
def all_routes() -> tuple[Where, ...]:
    """The routes of the whole application."""
    return tuple(wheres(whole_app()))


def wheres(app: FastAPI) -> Iterator[Where]:
    """The routes of an application."""
    for context in iter_route_contexts(app.routes):
        assert context.path is not None
        if isinstance(context.original_route, WebSocketRoute):
            yield Where("WS", context.path)
            continue
        assert context.methods, f"{context.path} takes any method"
        for method in sorted(context.methods):
            yield Where(method, context.path)
