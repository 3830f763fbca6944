"""`tailrace bridge`: old Pub/Sub channels become streams."""

from __future__ import annotations

from typing import Annotated

import typer

from tailrace.cli.console import run, say
from tailrace.cli.doctor import embedded_url
from tailrace.errors import ConfigError

__all__ = ["bridge"]


def bridge(
    pattern: Annotated[
        str, typer.Option("--pattern", help="The channels, with one * where the workflow's id is.")
    ] = "workflow:*",
    redis: Annotated[
        str | None,
        typer.Option("--redis", metavar="URL", help="Else TAILRACE_REDIS_URL, else the embedded Redis in `.tailrace`."),
    ] = None,
) -> None:
    """Store what is published on old Pub/Sub channels in streams, so that it has a history and can be resumed.

    Producers stay as they are. Start it twice, on two machines: one writes, the other takes over within seconds, and
    the streams say where messages may be missing. Not for workflows whose publisher writes both ways already: they
    would be stored twice.

    **Examples**

    `tailrace bridge --pattern 'workflow:*' --redis redis://redis:6379/0`
    """
    import asyncio
    import signal

    from tailrace.config import load_settings
    from tailrace.features.workflow.bridge import Bridge
    from tailrace.observe import configure_logging

    settings = load_settings()
    configure_logging(settings)
    url = redis or (settings.redis_url.get_secret_value() if settings.redis_url is not None else embedded_url())
    if url is None:
        raise ConfigError("no Redis: give --redis, set TAILRACE_REDIS_URL, or run this beside a `.tailrace`")
    if not settings.redis_stream_enabled:
        raise ConfigError("REDIS_STREAM_ENABLED is off: there are no streams to bridge to")

    async def main() -> None:
        made = Bridge(url, pattern, key_prefix=settings.key_prefix, kinds=settings.stream_kinds())
        task = asyncio.create_task(made.run(), name="bridge")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        say(f"bridging {pattern}")
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    run(main())
