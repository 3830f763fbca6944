"""Every setting, and where it is read from."""

from __future__ import annotations

import ipaddress
import os
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import structs
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from tailrace.config.types import Algorithm, Count, CountOrOff, KindSettings, Seconds, Words, comma_separated
from tailrace.core.kinds import DEFAULT_KINDS, Kinds, Start, StreamKind
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError, InvalidStream

__all__ = ["PREFIX", "Settings", "load_settings"]

PREFIX = "TAILRACE_"
MIN_SECRET_BYTES = 32
_HMAC = frozenset({"HS256", "HS384", "HS512"})


class Settings(BaseSettings):
    """Everything that can be set, from arguments and the environment.

    Frozen; secrets never show in `repr`, logs or error texts.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        env_nested_delimiter=None,
        extra="forbid",
        frozen=True,
        validate_default=True,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port to listen on; 0 takes a free one."""
    workers: Count = 1
    """Processes that share the port."""
    data_dir: Path = Path(".tailrace")
    """Folder of the embedded Redis, generated keys and disk spools."""
    redis_url: Annotated[SecretStr | None, Field(validation_alias=AliasChoices("TAILRACE_REDIS_URL", "REDIS_URL"))] = (
        None
    )
    """Where the log lives: `redis://`, `rediss://`, `unix://`, …; empty: `dev` embeds a server, `serve` refuses."""
    redis_stream_enabled: Annotated[
        bool, Field(validation_alias=AliasChoices("TAILRACE_REDIS_STREAM_ENABLED", "REDIS_STREAM_ENABLED"))
    ] = True
    """Whether Redis Streams are used at all; off: Pub/Sub only, without history."""
    database_url: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("TAILRACE_DATABASE_URL", "DATABASE_URL"))
    ] = None
    """SQL database of the features that need one: `sqlite:///…`, `postgresql://…`, `mysql://…`; empty: a SQLite file in
    `data_dir`."""
    database_timeout_seconds: Seconds = 5.0
    """Deadline of one piece of work in the database; longer is answered 503."""
    key_prefix: str = "tailrace:"
    """First part of every Redis key; may be empty."""
    delivery: Literal["push", "xread"] = "push"
    """How new records reach this process: Pub/Sub with proof, or blocking reads."""
    log_timeout_seconds: Seconds = 5.0
    """Deadline of one call to the log; a publish or a page that takes longer is answered 503."""

    api_prefix: str = "/api/v1"
    """Path before every route of the API; may be empty."""
    docs_enabled: bool = True
    """Whether `/docs` and `/openapi.json` are served."""
    metrics_enabled: bool = True
    """Whether `/metrics` is served."""
    page_enabled: bool = True
    """Whether the live page is served at `/`."""
    cors_origins: Words = ()
    """Origins of other sites whose pages may call this API, e.g. `https://app.example.com`; never `*`."""
    allowed_hosts: Words = ()
    """Host names this server answers to (`*.example.com` allowed); empty: all."""
    trusted_proxies: Words = ()
    """Addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; `unix`: whoever connects
    through a socket file."""

    jwt_secret: SecretStr | None = None
    """HMAC key of tokens, at least 32 bytes; excludes the other key settings."""
    jwt_key_file: Path | None = None
    """PEM file with the public key of tokens (RSA, EC or Ed25519)."""
    jwt_jwks_file: Path | None = None
    """JSON Web Key Set on disk; read again when it changes."""
    jwt_jwks_url: str | None = None
    """JSON Web Key Set by HTTPS (HTTP on loopback only)."""
    jwt_algorithms: Annotated[tuple[Algorithm, ...], NoDecode, BeforeValidator(comma_separated)] = ()
    """Accepted algorithms; empty: what fits the key. HMAC and public-key algorithms are never mixed."""
    jwt_issuer: str | None = None
    """Required `iss`."""
    jwt_audience: str | None = None
    """Required `aud`."""
    jwt_leeway_seconds: Annotated[float, Field(ge=0, le=60)] = 10.0
    """Tolerated difference of clocks."""
    jwks_cache_seconds: Seconds = 300.0
    """How long a fetched key set is used before it is fetched again."""
    cookie_name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None
    """Name of an HttpOnly cookie that may carry the token for same-origin pages; empty: none."""
    sse_token_seconds: Seconds = 60.0
    """A minted `sse_token` must be used first within this time."""
    sse_token_kept_seconds: Seconds = 300.0
    """A used `sse_token` stays good this long after its connection ended."""
    recheck_seconds: Annotated[float, Field(gt=0, le=5)] = 2.0
    """How often live connections are held against revocations, expiry and grants."""

    max_connections: Count = 20_000
    """Live connections of one process."""
    max_connections_per_user: CountOrOff = 10
    """Live connections of one user, over all processes; 0: no limit."""
    max_connections_per_address: CountOrOff = 100
    """Live connections of one address (IPv6: of one /64), over all processes; 0: no limit. Off until
    `trusted_proxies` is set."""
    connection_policy: Literal["evict_oldest", "refuse"] = "evict_oldest"
    """What happens at a user's limit."""
    max_event_bytes: Count = 1_048_576
    """Minified data of one event."""
    max_batch_events: Annotated[int, Field(ge=1, le=1_000)] = 1_000
    """Events of one publish."""
    max_batch_bytes: Annotated[int, Field(ge=1, le=8_388_608)] = 8_388_608
    """Body of one publish."""
    max_json_depth: Annotated[int, Field(ge=1, le=64)] = 64
    """Nesting of an event's data."""
    page_limit: Annotated[int, Field(ge=1, le=1_000)] = 100
    """Records of a page that does not ask for a number."""
    max_page_bytes: Count = 4_194_304
    """Records of a page, in bytes of data."""
    body_timeout_seconds: Seconds = 10.0
    """A request's body must be complete within this time."""
    max_head_bytes: Count = 32_768
    """Request line and headers."""
    head_timeout_seconds: Seconds = 10.0
    """A request's headers must be complete within this time."""
    max_cursor_bytes: Count = 4_096
    """`Last-Event-ID` or cursor parameter."""
    max_streams_per_sse: Annotated[int, Field(ge=1, le=32)] = 32
    """Streams of one SSE connection or long-poll."""
    max_streams_per_websocket: Count = 500
    """Streams of one WebSocket."""
    max_frame_bytes: Count = 65_536
    """WebSocket frame from a client."""
    commands_per_minute: Count = 120
    """WebSocket commands of one connection."""
    max_poll_seconds: Seconds = 55.0
    """Longest wait of a long-poll."""
    heartbeat_seconds: Seconds = 15.0
    """An idle connection gets a heartbeat this often."""
    retry_min_seconds: Seconds = 1.0
    """Shortest delay a client is told to wait before it comes back."""
    retry_max_seconds: Seconds = 3.0
    """Longest such delay; the real one is drawn between the two."""
    max_unsent_bytes: Count = 262_144
    """Bytes a client may leave unread before it is served from the log again."""
    send_buffer_bytes: Count = 131_072
    """Kernel buffer of a connection (SO_SNDBUF)."""
    stall_seconds: Seconds = 30.0
    """A client that read nothing for this long is closed (4001)."""
    drain_seconds: Seconds = 10.0
    """Window over which clients are sent away at shutdown."""
    run_ttl_seconds: Seconds = 86_400.0
    """Streams of kind `run` expire this long after they were closed."""
    run_ttl_seconds_by_kind: dict[str, Seconds] = {}
    """The same for single kinds of run, e.g. `{"report": 604800}`."""
    runs_enabled: bool = True
    """Whether there are runs: their routes, and the workers that end what was lost."""
    run_lease_seconds: Annotated[float, Field(ge=1, le=3_600, allow_inf_nan=False)] = 15.0
    """A claimed run whose producer was silent for this long is `lost`."""
    rollout_enabled: bool = True
    """Whether this gateway follows rollouts from Pub/Sub to streams, and may guard them."""
    rollout_max_mismatch: Annotated[float, Field(gt=0, le=1)] = 0.01
    """The guards roll back when this share of the messages came on one way only."""
    rollout_max_publish_errors: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The guards roll back when this share of the publishes to streams failed."""
    rollout_max_lag_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    """The guards roll back when streams are so far behind the old channels."""
    rollout_window_seconds: Annotated[float, Field(ge=3, le=3_600)] = 60.0
    """The guards judge nothing that is older."""
    workflows_enabled: bool = True
    """Whether `…/streams/workflow:{id}/ws` knows the old channels too."""
    workflow_mode: Literal["streams", "dual", "pubsub", "rollout"] = "streams"
    """Where workflows are published and read; `rollout`: what `tailrace rollout` says."""
    workflow_channel: Annotated[str, Field(pattern=r"^[!-~]*\{id\}[!-~]*$")] = "workflow:{id}"
    """Pub/Sub channel of a workflow before it had a stream."""
    workflow_fallback_seconds: Seconds = 30.0
    """When the log does not answer for this long, viewers of workflows are given their old channels."""
    kinds: dict[str, KindSettings] = {}
    """Stream kinds, as `[kinds.<name>]` tables."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important log line that is written."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: console on a terminal, JSON elsewhere."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, which wins over the file (`load_settings` finds it)."""
        file = _FILE.get()
        if file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    @field_validator("api_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if value and (not value.startswith("/") or value.endswith("/") or "{" in value):
            raise ValueError("starts with / and does not end with one, or is empty")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if text != "unix":
                ipaddress.ip_network(text, strict=False)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, separator, rest = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not rest or set(rest) & set("/*?#@"):
                raise ValueError("an origin is scheme://host[:port]; * and paths are not accepted")
        return tuple(origin.lower() for origin in value)

    @field_validator("jwt_jwks_url")
    @classmethod
    def _jwks_by_tls(cls, value: str | None) -> str | None:
        if value is None or value.startswith("https://"):
            return value
        host = value.removeprefix("http://").partition("/")[0].rpartition(":")[0] or value
        if value.startswith("http://") and host in ("127.0.0.1", "localhost", "[::1]"):
            return value
        raise ValueError("must be an https:// address")

    @field_validator("kinds")
    @classmethod
    def _kind_names(cls, value: dict[str, KindSettings]) -> dict[str, KindSettings]:
        for name in value:
            try:
                StreamName.parse(f"{name}:x")
            except InvalidStream as exc:
                raise ValueError("a kind is named by a-z, 0-9 and -, and starts with a letter") from exc
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        keys = [self.jwt_secret, self.jwt_key_file, self.jwt_jwks_file, self.jwt_jwks_url]
        if sum(key is not None for key in keys) > 1:
            raise ValueError("jwt_secret, jwt_key_file, jwt_jwks_file and jwt_jwks_url exclude each other")
        hmac = _HMAC & set(self.jwt_algorithms)
        if hmac and len(hmac) != len(set(self.jwt_algorithms)):
            raise ValueError("jwt_algorithms mixes HMAC and public-key algorithms")
        if hmac and any(key is not None for key in keys[1:]):
            raise ValueError("jwt_algorithms has HMAC algorithms, but the key is a public one")
        if self.jwt_algorithms and not hmac and self.jwt_secret is not None:
            raise ValueError("jwt_algorithms has public-key algorithms, but the key is jwt_secret")
        if self.retry_min_seconds > self.retry_max_seconds:
            raise ValueError("retry_min_seconds is larger than retry_max_seconds")
        return self

    @property
    def has_token_key(self) -> bool:
        """Whether tokens can be checked at all."""
        return any((self.jwt_secret, self.jwt_key_file, self.jwt_jwks_file, self.jwt_jwks_url))

    def stream_kinds(self) -> Kinds:
        """The stream kinds of this installation, as the core wants them."""
        made = {"probe": StreamKind(name="probe", start=Start.NOW, max_length=1, idle_ttl_seconds=60.0)}
        for kind in DEFAULT_KINDS:
            changes: dict[str, Any] = {"max_event_bytes": self.max_event_bytes}
            if kind.name == "run":
                changes["closed_ttl_seconds"] = self.run_ttl_seconds
            made[kind.name] = structs.replace(kind, **changes)
        for name, given in self.kinds.items():
            base = made.get(name) or StreamKind(name=name, max_event_bytes=self.max_event_bytes)
            made[name] = structs.replace(base, **given.model_dump(exclude_unset=True))
        return Kinds(made.values(), default=StreamKind(name="", max_event_bytes=self.max_event_bytes))


_FILE: ContextVar[Path | None] = ContextVar("tailrace settings file", default=None)


def _config_file() -> Path | None:
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"{PREFIX}CONFIG names {named}, which is not a file")
        return path
    return Path("tailrace.toml") if Path("tailrace.toml").is_file() else None


def load_settings(**overrides: Any) -> Settings:
    """Read the settings with their file: `TAILRACE_CONFIG`, else `./tailrace.toml` where there is one.

    `overrides` (command-line options) win over everything.

    Raises:
        ConfigError: something cannot work; the text names each setting and never a value.
    """
    found = _FILE.set(_config_file())
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        lines = [f"{'.'.join(map(str, error['loc'])) or 'settings'}: {error['msg']}" for error in exc.errors()]
        raise ConfigError("; ".join(lines)) from None
    except SettingsError as exc:
        raise ConfigError(str(exc)) from None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"the settings file cannot be read: {exc}") from None
    finally:
        _FILE.reset(found)
