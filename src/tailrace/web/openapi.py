"""What the OpenAPI document says beside the routes' own signatures: parameters, examples, problems."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CLOSED",
    "CURSOR",
    "EVENTS_BODY",
    "HISTORY",
    "HISTORY_PARAMETERS",
    "INFO",
    "PUBLISHED",
    "RECORD",
    "SSE",
    "SSE_PARAMETERS",
    "STREAMS",
    "TAGS",
    "parameter",
    "problems",
    "security_schemes",
]

TAGS = [
    {"name": "streams", "description": "Publish to one stream, read its history, end it."},
    {"name": "live", "description": "Follow streams: SSE, WebSocket, long-poll."},
    {"name": "runs", "description": "Jobs with a status, an owner, and a stream of events."},
    {"name": "auth", "description": "Short tokens for connections that cannot send headers."},
    {"name": "health", "description": "For load balancers and operators."},
]

_CODES = {
    400: ("MALFORMED", "Something in the request cannot be understood.", "limit is a whole number from 1 to 1000"),
    401: ("UNAUTHORIZED", "No token, or not a good one.", "the token has expired"),
    403: (
        "FORBIDDEN",
        "The token does not grant this; also for what does not exist.",
        "not allowed to read this stream",
    ),
    404: ("NOT_FOUND", "There is no such stream.", "there is no such stream"),
    408: ("REQUEST_TIMEOUT", "The body was not complete in time.", "the body was not complete within 10 s"),
    409: ("STREAM_CLOSED", "The stream's state forbids it.", "the stream was closed"),
    413: ("TOO_LARGE", "Over a size limit.", "the data is larger than 1048576 bytes"),
    410: ("RUN_EXPIRED", "The run is finished and its events are gone.", "the run is finished and its events are gone"),
    415: ("UNSUPPORTED_MEDIA_TYPE", "Not JSON and not NDJSON.", "send application/json or application/x-ndjson"),
    429: ("RATE_LIMITED", "Over a limit; see Retry-After.", "too many connections"),
    503: (
        "LOG_UNAVAILABLE",
        "The log does not answer; nothing was stored. See Retry-After.",
        "the log does not answer",
    ),
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; what a program should look at."},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "retry_after": {"type": "number"},
    },
}
_RECORD_EXAMPLE = {
    "id": "1767225600000-1",
    "prev": "0-0",
    "stream": "run:42",
    "type": "node_output",
    "time": 1767225600000,
    "data": {"node": "plan", "text": "hello"},
}
RECORD = {
    "type": "object",
    "required": ["id", "prev", "stream", "type", "time", "data"],
    "properties": {
        "id": {"type": "string"},
        "prev": {"type": ["string", "null"], "description": "The id of the record before: nothing is missing between."},
        "stream": {"type": "string"},
        "type": {"type": "string"},
        "time": {"type": "integer", "description": "The log's clock, Unix milliseconds."},
        "data": {},
        "uid": {"type": "string"},
        "key": {"type": "string"},
        "actor": {"type": "string"},
        "trace": {"type": "string"},
        "foreign": {"type": "boolean"},
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem answers of a route, each with an example."""
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        code, description, detail = _CODES[status]
        example = {
            "type": f"urn:tailrace:problem:{code.lower().replace('_', '-')}",
            "title": description.partition(";")[0],
            "status": status,
            "code": code,
            "detail": detail,
        }
        answers[status] = {
            "description": description,
            "content": {"application/problem+json": {"schema": _PROBLEM, "example": example}},
        }
    return answers


def parameter(
    name: str, description: str, schema: dict[str, Any] | None = None, *, where: str = "query"
) -> dict[str, Any]:
    """One parameter."""
    return {"name": name, "in": where, "description": description, "schema": schema or {"type": "string"}}


STREAMS = parameter(
    "stream",
    "A stream; repeat it for several. Without: the caller's own `user:{sub}` and `system:all`.",
    {"type": "array", "items": {"type": "string"}, "maxItems": 32},
)
CURSOR = parameter("last_event_id", "Where to go on: an id, a token that was given out, `0`, `$`, or a time in ms.")
_LIMIT = parameter("limit", "Records of the page.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100})
COMPACT = parameter(
    "compact", "`1`: pieces of text that follow each other as one record.", {"type": "string", "enum": ["0", "1"]}
)
FORMAT = parameter("format", "How records are given.", {"type": "string", "enum": ["envelope", "raw"]})
HISTORY_PARAMETERS = [
    parameter("start_id", "First id, inclusive; or a time in ms."),
    parameter("end_id", "Last id, inclusive; or a time in ms."),
    parameter("since_id", "What the reader has, exclusive; the answer says what is missing after it."),
    _LIMIT,
    parameter("order", "`asc` or `desc`.", {"type": "string", "enum": ["asc", "desc"], "default": "asc"}),
    parameter("types", "Only these event types, separated by commas."),
    COMPACT,
    FORMAT,
]
SSE_PARAMETERS = [
    parameter("Last-Event-ID", "Where to go on; wins over the parameters.", where="header"),
    CURSOR,
    FORMAT,
    parameter("named", "`0`: records without `event:`, for `onmessage`.", {"type": "string", "enum": ["0", "1"]}),
    parameter("conflate", "`1`: while lagging, only the latest per `key`.", {"type": "string", "enum": ["0", "1"]}),
    COMPACT,
    parameter("connection", "The client's own name for this connection, kept over reconnects."),
    parameter("sse_token", "A short token, for clients that cannot send headers."),
]

_EVENT = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "example": "node_output"},
        "data": {},
        "uid": {"type": "string", "description": "The same uid is stored once among the last 1 024."},
        "key": {"type": "string"},
        "actor": {"type": "string"},
        "trace": {"type": "string"},
    },
}
EVENTS_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"oneOf": [_EVENT, {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": 1000}]},
            "examples": {
                "one": {"value": {"type": "node_output", "data": {"node": "plan", "text": "hello"}}},
                "several": {"value": [{"type": "a", "data": 1}, {"type": "b", "data": 2, "uid": "order-7"}]},
            },
        },
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "example": '{"type":"a","data":1}\n{"type":"b","data":2}\n',
        },
    },
}
PUBLISHED: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "All events are in the log.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["events"],
                    "properties": {
                        "events": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["id", "stream", "duplicate"],
                                "properties": {
                                    "id": {"type": "string"},
                                    "stream": {"type": "string"},
                                    "duplicate": {"type": "boolean"},
                                },
                            },
                        }
                    },
                },
                "example": {"events": [{"id": "1767225600000-1", "stream": "run:42", "duplicate": False}]},
            }
        },
    }
}
HISTORY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["events", "has_more", "next_id", "gap"],
                    "properties": {
                        "events": {"type": "array", "items": RECORD},
                        "has_more": {"type": "boolean"},
                        "next_id": {"type": ["string", "null"]},
                        "gap": {"type": ["object", "null"]},
                        "gaps": {"type": "array", "items": {"type": "object"}},
                        "state": {"type": "string"},
                        "cursor": {"type": "string"},
                    },
                },
                "example": {
                    "events": [_RECORD_EXAMPLE],
                    "has_more": False,
                    "next_id": None,
                    "gap": None,
                    "gaps": [],
                    "state": "open",
                },
            }
        },
    }
}
_INFO_EXAMPLE = {
    "stream": "run:42",
    "state": "open",
    "length": 1,
    "first_id": "1767225600000-1",
    "last_id": "1767225600000-1",
    "incarnation": 1,
    "ttl": None,
}
INFO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The stream.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": _INFO_EXAMPLE}},
    }
}
CLOSED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The stream is closed.",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"stream": "run:42", "state": "closed", "last_id": "1767225600000-1"},
            }
        },
    }
}
SSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events until the streams end. What may succeed later is refused here too, by `stream.refused`.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'retry: 1800\nid: 1767225600000-1\nevent: node_output\ndata: {"id":"1767225600000-1"}\n\n',
            }
        },
    },
    204: {"description": "Nothing will ever come: the stream is finished and read, or this connection was replaced."},
}


def security_schemes() -> dict[str, Any]:
    """How a request proves itself."""
    return {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "sse_token": {"type": "apiKey", "in": "query", "name": "sse_token"},
    }
