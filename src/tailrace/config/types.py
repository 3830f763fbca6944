"""The types of settings, checked where they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

from tailrace.core.kinds import Start

__all__ = ["Algorithm", "Count", "CountOrOff", "KindSettings", "Seconds", "Words", "comma_separated"]

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


def comma_separated(value: object) -> object:
    """A list as one variable holds it."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(comma_separated)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrOff = Annotated[int, Field(ge=0)]


class KindSettings(BaseModel):
    """The `[kinds.<name>]` tables: how one kind of stream differs from the default policy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    start: Start | None = None
    """Where a reader without a cursor begins: `first` or `now`."""
    max_length: Count | None = None
    """At least this many records are kept."""
    max_age_seconds: Seconds | None = None
    """Records older than this may be trimmed."""
    idle_ttl_seconds: Seconds | None = None
    """The stream expires when nothing was appended for this long."""
    closed_ttl_seconds: Seconds | None = None
    """The stream expires this long after it was closed."""
    max_event_bytes: Count | None = None
    """Limit of one event's minified data."""
    format: Literal["envelope", "raw"] | None = None
    """What a reader gets that does not say."""
    key_template: str | None = None
    """Redis key with `{prefix}`, `{kind}` and `{name}`."""
