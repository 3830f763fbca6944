"""What operators see: structured logs without secrets, and metrics.

Rules of this file
1. A token never reaches a log: every line is searched as it is written, tracebacks and uvicorn's lines included.
2. A metric's labels come from our own words only; a client cannot make new ones.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from tailrace.config import Settings

__all__ = ["METRICS_CONTENT_TYPE", "Metrics", "RedactingFilter", "configure_logging", "redact", "redact_servers"]

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HIDDEN = "***"

_SECRETS = (
    re.compile(r"(?i)\b((?:sse_|access_|refresh_|id_)?token|ticket|secret|password|api_?key)=([^&\s\"'<>\\]+)"),
    re.compile(r"(?i)\b(bearer|basic)[ .]+([A-Za-z0-9._~+/=-]{8,})"),
    re.compile(r"(?i)(\"?(?:authorization|cookie|set-cookie|x-api-key)\"?[:=]\s*b?[\"']?)([^\"'\r\n,}]+)"),
    re.compile(r"(://[^/\s:@]*:)([^/\s@]+)(?=@)"),
)
_BARE = re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?|\bst1_[A-Za-z0-9_-]{8,}")


def redact(text: str) -> str:
    """The text without tokens, keys and passwords."""
    text = _BARE.sub(HIDDEN, text)
    for pattern in _SECRETS:
        text = pattern.sub(_hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    separator = "=" if match.re is _SECRETS[0] else " " if match.re is _SECRETS[1] else ""
    return f"{match[1]}{separator}{HIDDEN}"


class RedactingFilter(logging.Filter):
    """Cleans the records of loggers whose handlers are not ours (an embedding application, plain uvicorn)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean a record in place; always lets it pass."""
        if isinstance(record.msg, str):
            record.msg = redact(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in record.args)
        return True


def redact_servers() -> None:
    """Clean what uvicorn logs, whoever set up its logging: it writes WebSocket URLs even without an access log."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, RedactingFilter) for each in logger.filters):
            logger.addFilter(RedactingFilter())


class _RedactingFormatter(logging.Formatter):
    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._inner.format(record))


def configure_logging(settings: Settings, stream: Any = None) -> None:
    """Send all logs of this process to `stream` (standard error), one line each, as JSON or for a terminal."""
    stream = sys.stderr if stream is None else stream
    style: Literal["json", "console"] = "json"
    if settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty()):
        style = "console"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_RedactingFormatter(_formatter(style, colours=stream.isatty())))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # These say at INFO what ours say better, or what nobody asked.
    for name in ("httpx", "httpcore", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _without_repeats(_logger: Any, _method: str, event: Any) -> Any:
    event.pop("color_message", None)  # uvicorn's sentence once more, for its own formatter
    return event


def _formatter(style: str, *, colours: bool) -> logging.Formatter:
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _without_repeats,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "console":
        last: list[Any] = [structlog.dev.ConsoleRenderer(colors=colours)]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )


_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "tailrace_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "tailrace_http_request_seconds",
            "Time until a finite answer was sent.",
            ["route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.published = Counter(
            "tailrace_published_events", "Events acknowledged by the log.", ["kind", "outcome"], registry=registry
        )
        self.publish_seconds = Histogram(
            "tailrace_publish_seconds", "Time the log took to acknowledge.", buckets=_LATENCY, registry=registry
        )
        self.connections = Gauge("tailrace_connections", "Live connections.", ["transport"], registry=registry)
        self.opened = Counter("tailrace_connections_opened", "Connections begun.", ["transport"], registry=registry)
        self.closed = Counter(
            "tailrace_connections_closed", "Connections the server ended.", ["transport", "reason"], registry=registry
        )
        self.refused = Counter(
            "tailrace_connections_refused", "Connections not begun.", ["transport", "reason"], registry=registry
        )
        self.failed_auth = Counter(
            "tailrace_auth_failures", "Requests without a good token.", ["reason"], registry=registry
        )
        self.log_up = Gauge("tailrace_log_up", "Whether the last probe came back.", registry=registry)
        self.probe_seconds = Gauge(
            "tailrace_probe_seconds", "Publish to receive through log and hub, last probe.", registry=registry
        )
        self.topics = Gauge("tailrace_topics", "Streams this process watches.", registry=registry)
        self.subscriptions = Gauge("tailrace_subscriptions", "Readers of the hub.", registry=registry)
        self.live_lanes = Gauge("tailrace_live_lanes", "Readers at the live end of a stream.", registry=registry)
        self.replaying_lanes = Gauge("tailrace_replaying_lanes", "Readers behind the live end.", registry=registry)
        self.heals = Gauge("tailrace_heals", "Reads that settled a doubt since the start.", registry=registry)
        self.event_loop_lag = Gauge(
            "tailrace_event_loop_lag_seconds", "Delay of a timer, last probe.", registry=registry
        )

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
