"""`tailrace doctor`: is everything as it has to be?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.checks import print_findings
from tailrace.cli.console import on_terminal, out, run
from tailrace.cli.options import TokenOption, UrlOption
from tailrace.cli.target import data_folder, find_target
from tailrace.errors import ConfigError, TailraceError

if TYPE_CHECKING:
    from tailrace.eventlog.checks import Finding

__all__ = ["doctor", "embedded_url"]


def doctor(
    redis: Annotated[
        str | None,
        typer.Option("--redis", metavar="URL", help="Else TAILRACE_REDIS_URL, else the embedded Redis in `.tailrace`."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are warnings only.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Check settings, Redis and the gateway, with advice for what is not as it should be.

    The exit code is that of the worst finding; warnings alone are 0.

    **Examples**

    `tailrace doctor`

    `tailrace doctor --redis redis://:password@redis.internal:6379/0`
    """
    from tailrace.config import load_settings, unknown_variables
    from tailrace.eventlog.checks import exit_code

    settings = load_settings()
    findings = [
        _finding("settings", "warning", 0, "environment", f"{name} names no setting; is it a typing error?", "")
        for name in unknown_variables(os.environ)
        if name not in ("TAILRACE_URL", "TAILRACE_TOKEN", "TAILRACE_STREAM")
    ]
    redis_url = redis or (settings.redis_url.get_secret_value() if settings.redis_url is not None else None)
    findings += run(_look(redis_url, settings, url, token))
    print_findings(findings)
    code = exit_code(findings, strict=strict)
    if on_terminal() and not code:
        out().print(
            "[green]✓[/] nothing stands in the way" if findings else "[green]✓[/] everything is as it should be"
        )
    raise typer.Exit(code)


async def _look(redis_url: str | None, settings: Any, url: str | None, token: str | None) -> list[Finding]:
    from tailrace.eventlog.checks import run_checks

    findings: list[Finding] = []
    if redis_url is None:
        redis_url = embedded_url()
    if redis_url is not None:
        findings += await run_checks(
            redis_url, key_prefix=settings.key_prefix, streams_enabled=settings.redis_stream_enabled
        )
    try:
        target = find_target(url, token)
    except ConfigError as exc:
        level, code = ("info", 0) if redis_url is not None else ("error", 78)
        findings.append(_finding("gateway", level, code, "here", str(exc), ""))
        return findings
    findings += await _gateway(target.url, target.token)
    return findings


async def _gateway(url: str, token: str | None) -> list[Finding]:
    """Ask a gateway whether it is ready, and whether the token is good for anything."""
    import asyncio

    from tailrace.client.http import HttpClient, HttpFailure
    from tailrace.client.remote import API

    if not url.startswith(("http://", "https://")):
        return []
    http = HttpClient(url)
    api, http.base = http.base or API, ""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        async with asyncio.timeout(5):
            ready, answer = await http.request("GET", "/readyz", headers={})
            granted, _ = await http.request("POST", f"{api}/auth/sse-token", headers=headers)
    except (HttpFailure, TimeoutError) as exc:
        text = str(exc) or "no answer in time"
        return [_finding("gateway", "error", 69, url, text, "start it with `tailrace dev` or `tailrace serve`")]
    finally:
        await http.aclose()
    if b'"status"' not in answer:
        text = f"what answers at {url} is no gateway of tailrace"
        return [_finding("gateway", "error", 69, url, text, "is it the right address, and the right port?")]
    findings = []
    if ready.status != 200:
        text = "the gateway answers but is not ready: its log does not answer"
        findings.append(_finding("gateway", "error", 69, url, text, "see its log, and the checks of Redis above"))
    else:
        findings.append(_finding("gateway", "info", 0, url, f"{url} is ready", ""))
    if granted.status in (401, 403):
        text = "the gateway refuses the token" if token else "there is no token for the gateway"
        findings.append(_finding("token", "error", 77, url, text, "mint one with `tailrace token`"))
    return findings


def embedded_url() -> str | None:
    """The Redis of a `tailrace dev` that runs around here."""
    folder = data_folder()
    if folder is None:
        return None
    from tailrace.cli.dev import running_redis

    try:
        return running_redis(folder)
    except TailraceError:
        return None


def _finding(check: str, level: str, code: int, server: str, text: str, advice: str) -> Finding:
    from tailrace.eventlog.checks import Finding, Level

    return Finding(check, Level(level), code, server, text, advice)
