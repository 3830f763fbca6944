"""Deliver what commands that were killed, or whose server was away, left in the spool folder, and end their runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from tailrace.cli.target import HOME
from tailrace.client.client import open_backend
from tailrace.client.delivery import Delivery
from tailrace.client.remote import RemoteLog
from tailrace.client.spool import SpoolFile, orphans
from tailrace.features.runs.recovering import tell_left
from tailrace.features.runs.remote import HttpRuns

__all__ = ["deliver_leftovers"]

log = logging.getLogger("tailrace.cli")

EVERY_SECONDS = 5.0


async def deliver_leftovers(folder: Path, url: str, token: str) -> None:
    """Look for left files again and again until cancelled. Files in use are left alone."""
    backend = open_backend(url, token)
    try:
        while True:
            for spool in await asyncio.to_thread(lambda: list(orphans(folder, HOME))):
                try:
                    await _deliver(Delivery(backend, spool, threaded=True), spool)
                    if isinstance(backend, RemoteLog):
                        await tell_left(HttpRuns("", None, remote=backend), spool)
                finally:
                    await asyncio.shield(asyncio.to_thread(spool.close))
            await asyncio.sleep(EVERY_SECONDS)
    finally:
        await backend.aclose()


async def _deliver(delivery: Delivery, spool: SpoolFile) -> None:
    count = spool.pending
    task = asyncio.create_task(delivery.run())
    empty = asyncio.create_task(delivery.wait_empty())
    try:
        await asyncio.wait([task, empty], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        log.info("left events were delivered", extra={"events": count, "file": spool.path.name})
    finally:
        for each in (task, empty):
            each.cancel()
        await asyncio.gather(task, empty, return_exceptions=True)
