"""Every route of the application, asked of the application itself, so that a new one cannot be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import WebSocketRoute

__all__ = ["PREFIX", "Where", "wheres"]

PREFIX = "/api/v1"


class Where(NamedTuple):
    """A method and a path pattern; a WebSocket's method is WS."""

    method: str
    path: str

    @property
    def rule(self) -> tuple[str, str]:
        """What it is below the prefix: the API is mounted twice, with the same rules."""
        return self.method, self.path.removeprefix(PREFIX)


def wheres(app: FastAPI) -> Iterator[Where]:
    """All of them."""
    for context in iter_route_contexts(app.routes):
        assert context.path is not None
        if isinstance(context.original_route, WebSocketRoute):
            yield Where("WS", context.path)
            continue
        assert context.methods, f"{context.path} takes any method"
        for method in sorted(context.methods):
            yield Where(method, context.path)
