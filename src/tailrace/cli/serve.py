"""`tailrace serve`: the gateway in production."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.checks import print_findings
from tailrace.cli.console import complain, err, say
from tailrace.cli.exits import ExitCode
from tailrace.errors import ConfigError

if TYPE_CHECKING:
    from tailrace.config import Settings

__all__ = ["look_at_redis", "serve"]


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on. [TAILRACE_HOST, 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=0, max=65_535, help="Port to listen on. [TAILRACE_PORT, 8080]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes that share the port. [TAILRACE_WORKERS, 1]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with settings. [TAILRACE_CONFIG, ./tailrace.toml]")
    ] = None,
    checks: Annotated[bool, typer.Option("--checks/--no-checks", help="Look at Redis before starting.")] = True,
) -> None:
    """Run the gateway.

    Settings come from TAILRACE_* variables and a TOML file; TAILRACE_REDIS_URL and a token key are needed. SIGTERM or
    Ctrl-C drains: clients are sent away over a window, then it ends.

    **Examples**

    `TAILRACE_REDIS_URL=redis://redis:6379/0 TAILRACE_JWT_SECRET=… tailrace serve --host 0.0.0.0 --workers 2`

    `tailrace serve --config /etc/tailrace.toml`
    """
    from tailrace.config import load_settings, unknown_variables
    from tailrace.observe import configure_logging

    if config is not None:
        os.environ["TAILRACE_CONFIG"] = str(config)
    given = {"host": host, "port": port, "workers": workers}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    for name in unknown_variables(os.environ):
        if name not in ("TAILRACE_URL", "TAILRACE_TOKEN"):
            say(f"{name} names no setting; is it a typing error?", style="yellow")
    if settings.redis_url is None:
        raise ConfigError("serve needs TAILRACE_REDIS_URL; for development there is `tailrace dev`")
    if not settings.has_token_key:
        raise ConfigError("serve needs a key for tokens: TAILRACE_JWT_SECRET, _JWT_KEY_FILE, _JWT_JWKS_FILE or _URL")
    configure_logging(settings)
    raise typer.Exit(_serve(settings, checks=checks))


def _serve(settings: Settings, *, checks: bool) -> int:
    from tailrace import server

    async def main() -> int:
        if checks and (code := await _check(settings)):
            return code
        if settings.workers > 1:
            return await server.run_workers(settings, on_started=_started)
        return await server.serve(settings, on_started=_started)

    return server.run(main)


async def _check(settings: Any) -> int:
    """Look at Redis. What only time cures does not keep the gateway from starting: it is not ready until then."""
    code = await look_at_redis(settings)
    if code in (ExitCode.UNAVAILABLE, ExitCode.TEMPORARY):
        complain("Redis cannot be used now; the gateway starts, and is ready when it can")
        return 0
    return code


async def look_at_redis(settings: Any) -> int:
    """Say what is wrong with the Redis of the settings, and return the exit code of the worst; 0: it can be used."""
    from tailrace.eventlog.checks import Level, exit_code, run_checks

    findings = await run_checks(
        settings.redis_url.get_secret_value(),
        key_prefix=settings.key_prefix,
        streams_enabled=settings.redis_stream_enabled,
    )
    print_findings([each for each in findings if each.level is not Level.INFO], to_stderr=True)
    return exit_code(findings)


def _started(address: str) -> None:
    if sys.stderr.isatty():
        err().print(f"[green]✓[/] listening on [bold]{address}[/]")
