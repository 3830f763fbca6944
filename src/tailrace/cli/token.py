"""`tailrace token`: mint a JSON Web Token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tailrace.cli.console import on_terminal, say
from tailrace.cli.options import duration
from tailrace.cli.target import data_folder
from tailrace.errors import ConfigError, Unauthorized

__all__ = ["SECRET_FILE", "mint", "token"]

SECRET_FILE = "secret"  # noqa: S105 - a file's name


def token(
    sub: Annotated[str, typer.Option("--sub", help="Who it is for; reads user:SUB and system:all without a grant.")],
    read: Annotated[
        list[str] | None, typer.Option("--read", help="A stream, or KIND:*, that may be read. Repeat it.")
    ] = None,
    write: Annotated[
        list[str] | None, typer.Option("--write", help="A stream, or KIND:*, that may be published to. Repeat it.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Everything.")] = False,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it is good: 90s, 10m, 2h, 7d.")] = "1h",
    secret_file: Annotated[
        Path | None,
        typer.Option(
            "--secret-file", help="File with the HMAC key. Else TAILRACE_JWT_SECRET, else `.tailrace/secret`."
        ),
    ] = None,
) -> None:
    """Mint a token and print it.

    **Examples**

    `tailrace token --sub u7 --read 'run:*' --ttl 10m`

    `export TAILRACE_TOKEN=$(tailrace token --sub ci --write run:nightly)`
    """
    from tailrace.web.principal import read_grants

    seconds = duration(ttl).total_seconds()
    grants = {"read": read or [], "write": write or [], "admin": admin}
    for name, patterns in (("read", read or []), ("write", write or [])):
        for pattern in patterns:
            try:
                read_grants({"tailrace": {name: [pattern]}})
            except Unauthorized:
                words = f"{pattern!r} is neither a stream, such as run:42, nor all of a kind, such as run:*"
                raise typer.BadParameter(words, param_hint=f"--{name}") from None
    settings = _settings()
    secret = _secret(secret_file, settings)
    print(mint(secret, sub, grants, seconds, issuer=settings.jwt_issuer, audience=settings.jwt_audience))
    if on_terminal():
        say(f"for {sub}, good for {ttl}; whoever has it may use it")


def mint(
    secret: str,
    sub: str,
    grants: dict[str, Any],
    ttl_seconds: float,
    *,
    issuer: str | None = None,
    audience: str | None = None,
) -> str:
    """Sign a token with HS256."""
    import jwt

    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "iat": now, "exp": int(now + ttl_seconds), "tailrace": grants}
    if issuer is not None:
        claims["iss"] = issuer
    if audience is not None:
        claims["aud"] = audience
    return jwt.encode(claims, secret, algorithm="HS256")


def _settings() -> Any:
    from tailrace.config import load_settings

    return load_settings()


def _secret(file: Path | None, settings: Any) -> str:
    if file is None and settings.jwt_secret is not None:
        return str(settings.jwt_secret.get_secret_value())
    if file is None:
        folder = data_folder()
        file = folder / SECRET_FILE if folder is not None else None
    if file is None:
        raise ConfigError("no key: set TAILRACE_JWT_SECRET, give --secret-file, or run this beside a `.tailrace`")
    try:
        secret = file.read_text().strip()
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read: {exc.strerror}") from None
    if len(secret.encode()) < 32:
        raise ConfigError(f"the key in {file} has fewer than 32 bytes")
    return secret
