"""What the OpenAPI document says of runs."""

from __future__ import annotations

from typing import Any

from tailrace.features.runs.model import RunStatus
from tailrace.web import openapi

__all__ = ["LIST_PARAMETERS", "SCHEMAS", "answer", "body"]

_STATUS = {"type": "string", "enum": [status.value for status in RunStatus]}
_HOLD = {"type": "number", "minimum": 0, "maximum": 86400, "default": 0}
_TIME = {"type": ["integer", "null"], "description": "Unix milliseconds."}
_EXAMPLE = {
    "id": "5c1f0f0e6d1b4f0e8b7f8a1c2d3e4f50",
    "owner": "ada",
    "kind": "report",
    "title": "Report of May",
    "status": "running",
    "created_at": 1767225600000,
    "started_at": 1767225600100,
    "ended_at": None,
    "error": None,
    "result": None,
    "metadata": {},
    "owner_epoch": 1,
    "cancel_requested_at": None,
    "sealed": False,
    "flush_until": None,
    "stream": "run:5c1f0f0e6d1b4f0e8b7f8a1c2d3e4f50",
}
SCHEMAS: dict[str, Any] = {
    "EventListResponse": {
        "type": "object",
        "required": ["events", "has_more", "next_id", "gap"],
        "properties": {
            "events": {"type": "array", "items": openapi.RECORD},
            "has_more": {"type": "boolean"},
            "next_id": {"type": ["string", "null"], "description": "The next page's `start_id`."},
            "gap": {"type": ["object", "null"], "description": "What is missing, if anything is."},
            "gaps": {"type": "array", "items": {"type": "object"}},
            "state": {"type": "string"},
        },
    },
    "Run": {
        "type": "object",
        "required": ["id", "owner", "kind", "status", "created_at", "stream"],
        "properties": {
            "id": {"type": "string"},
            "owner": {"type": "string", "description": "Who may read it: a token's `sub`."},
            "kind": {"type": "string"},
            "title": {"type": "string"},
            "status": _STATUS,
            "created_at": _TIME,
            "started_at": _TIME,
            "ended_at": _TIME,
            "error": {"type": ["string", "null"]},
            "result": {},
            "metadata": {"type": "object"},
            "owner_epoch": {"type": "integer", "description": "How often it was claimed."},
            "cancel_requested_at": _TIME,
            "sealed": {"type": "boolean", "description": "Whether its stream has its end."},
            "flush_until": {**_TIME, "description": "Until when events that were on their way are waited for."},
            "stream": {"type": "string"},
        },
        "example": _EXAMPLE,
    },
    "RunListResponse": {
        "type": "object",
        "required": ["runs", "next_cursor"],
        "properties": {
            "runs": {"type": "array", "items": {"$ref": "#/components/schemas/Run"}},
            "next_cursor": {"type": ["string", "null"], "description": "The next page's `cursor`."},
        },
    },
    "NewRun": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "With an id the request may be repeated."},
            "kind": {"type": "string", "default": "run"},
            "title": {"type": "string"},
            "owner": {"type": "string", "description": "Another than the token's `sub`: with a grant on `run:*`."},
            "metadata": {"type": "object"},
        },
    },
    "EndRun": {
        "type": "object",
        "properties": {
            "epoch": {"type": "integer", "description": "The claim's; without, whoever has the run loses it."},
            "error": {"type": "string"},
            "result": {"description": "Small; or a reference to where it is."},
            "seal": {"type": "boolean", "default": True, "description": "False: events are still on their way."},
            "hold_seconds": _HOLD,
        },
    },
    "ClaimRun": {
        "type": "object",
        "required": ["producer"],
        "properties": {"producer": {"type": "string", "description": "A random name; the same again: the same claim."}},
    },
    "Claim": {
        "type": "object",
        "properties": {
            "run": {"$ref": "#/components/schemas/Run"},
            "epoch": {"type": "integer"},
            "lease_seconds": {"type": "number"},
        },
    },
    "RenewLeases": {
        "type": "object",
        "required": ["runs"],
        "properties": {
            "runs": {
                "type": "array",
                "maxItems": 1000,
                "items": {
                    "type": "object",
                    "required": ["id", "epoch"],
                    "properties": {"id": {"type": "string"}, "epoch": {"type": "integer"}},
                },
            },
            "hold_seconds": {**_HOLD, "description": "Keep them for so long: their ends are on a disk."},
        },
    },
    "Leases": {
        "type": "object",
        "properties": {
            "runs": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {"cancel": {"type": "boolean"}, "fenced": {"type": "boolean"}},
                },
            }
        },
    },
}
LIST_PARAMETERS = [
    openapi.parameter("owner", "Whose; another than the token's `sub`: with a grant to read `run:*`."),
    openapi.parameter("status", "Only these, separated by commas."),
    openapi.parameter("kind", "Only this kind."),
    openapi.parameter("created_from", "Unix milliseconds, inclusive.", {"type": "integer"}),
    openapi.parameter("created_before", "Unix milliseconds, exclusive.", {"type": "integer"}),
    openapi.parameter("limit", "Runs of the page.", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
    openapi.parameter("cursor", "`next_cursor` of the page before."),
]


def answer(schema: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """A good answer."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {status: {"description": "Done." if status != 200 else "What there is.", "content": content}}


def body(schema: str) -> dict[str, Any]:
    """What is sent."""
    return {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
