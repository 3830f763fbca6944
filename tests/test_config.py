from __future__ import annotations

from pathlib import Path

import pytest

from tailrace.config import Settings, load_settings, settings_table, unknown_variables
from tailrace.core.kinds import Start
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TAILRACE_") or name in ("REDIS_URL", "DATABASE_URL", "REDIS_STREAM_ENABLED"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_environment_wins_over_the_file_which_wins_over_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tailrace.toml").write_text('port = 1111\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("TAILRACE_PORT", "2222")

    settings = load_settings()

    assert (settings.port, settings.host, settings.api_prefix) == (2222, "0.0.0.0", "/api/v1")
    assert load_settings(port=3333).port == 3333


def test_named_settings_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_CONFIG", "missing.toml")

    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_settings()


def test_unreadable_settings_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text("port = = 1")

    with pytest.raises(ConfigError, match="settings file"):
        load_settings()


@pytest.mark.parametrize("line", ["prot = 1", "[kinds.run]\nmax_lenght = 1", '[kinds."Bad Kind"]\nmax_length = 1'])
def test_typing_error_in_the_file_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text(line)

    with pytest.raises(ConfigError):
        load_settings()


@pytest.mark.parametrize(("alias", "field"), [("REDIS_URL", "redis_url"), ("DATABASE_URL", "database_url")])
def test_aliases_are_read_and_own_names_win(alias: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(alias, "redis://alias")
    assert getattr(load_settings(), field).get_secret_value() == "redis://alias"

    monkeypatch.setenv(f"TAILRACE_{alias}", "redis://own")
    assert getattr(load_settings(), field).get_secret_value() == "redis://own"


def test_streams_can_be_switched_off_by_the_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_STREAM_ENABLED", "false")

    assert load_settings().redis_stream_enabled is False


def test_secrets_never_show() -> None:
    settings = load_settings(jwt_secret=SECRET, redis_url="redis://:hunter2@host")

    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in text
        assert "hunter2" not in text


def test_error_texts_name_the_setting_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_JWT_SECRET", "too-short-canary")

    with pytest.raises(ConfigError, match=r"JWT_SECRET|jwt_secret") as caught:
        load_settings()
    assert "canary" not in str(caught.value)


def test_secret_is_measured_in_bytes() -> None:
    assert load_settings(jwt_secret="ä" * 16).jwt_secret is not None
    with pytest.raises(ConfigError, match="32 bytes"):
        load_settings(jwt_secret="a" * 31)


@pytest.mark.parametrize(
    "wrong",
    [
        {"jwt_secret": SECRET, "jwt_key_file": "k.pem"},
        {"jwt_algorithms": "RS256,HS256"},
        {"jwt_secret": SECRET, "jwt_algorithms": "RS256"},
        {"jwt_key_file": "k.pem", "jwt_algorithms": "HS256"},
        {"jwt_algorithms": "none"},
        {"jwt_leeway_seconds": 61},
        {"jwt_jwks_url": "http://keys.example.com/jwks"},
        {"jwt_jwks_url": "file:///etc/passwd"},
        {"cors_origins": "*"},
        {"cors_origins": "https://a.example/path"},
        {"trusted_proxies": "not-a-network"},
        {"retry_min_seconds": 9},
        {"recheck_seconds": 6},
        {"api_prefix": "api"},
        {"api_prefix": "/api/"},
        {"port": 70_000},
        {"heartbeat_seconds": float("inf")},
        {"max_streams_per_sse": 33},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        load_settings(**wrong)


def test_lists_are_comma_separated_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_CORS_ORIGINS", "https://a.example, http://b.example:81")
    monkeypatch.setenv("TAILRACE_TRUSTED_PROXIES", "10.0.0.0/8,::1")

    settings = load_settings()

    assert settings.cors_origins == ("https://a.example", "http://b.example:81")
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().__setattr__("port", 1)


def test_kinds_come_from_the_file_on_top_of_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text(
        'max_event_bytes = 2000\nrun_ttl_seconds = 60\n[kinds.run]\nformat = "raw"\n'
        '[kinds.sensor]\nstart = "now"\nmax_length = 50\nkey_template = "s:{name}"\n'
    )

    kinds = load_settings().stream_kinds()

    run, sensor = kinds.of(StreamName.parse("run:1")), kinds.of(StreamName.parse("sensor:1"))
    assert (run.format, run.closed_ttl_seconds, run.max_length) == ("raw", 60.0, 10_000)
    assert (sensor.start, sensor.max_length, sensor.key_template) == (Start.NOW, 50, "s:{name}")
    assert kinds.of(StreamName.parse("user:1")).start is Start.NOW
    assert kinds.of(StreamName.parse("other:1")).max_event_bytes == 2000


def test_typing_errors_in_variables_are_found() -> None:
    environ = {"TAILRACE_PROT": "1", "TAILRACE_PORT": "1", "TAILRACE_CONFIG": "x", "PATH": "y"}

    assert unknown_variables(environ) == ["TAILRACE_PROT"]


def test_table_has_every_setting_with_a_text() -> None:
    rows = settings_table().splitlines()[2:]

    assert len(rows) == len(Settings.model_fields)
    for name, row in zip(Settings.model_fields, rows, strict=True):
        assert f"| `{name}` |" in row
        assert row.split("|")[4].strip(), name
