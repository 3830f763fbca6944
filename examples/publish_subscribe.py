"""Publish and subscribe with the async client.

    tailrace dev                                  # in another terminal, same folder
    export TAILRACE_URL=http://127.0.0.1:8080 TAILRACE_TOKEN=$(cat .tailrace/token)
    python examples/publish_subscribe.py

Stop it in the middle and start it again with the cursor that it printed: it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import os

from tailrace import Event, Gap, Record, Tailrace


async def publisher(client: Tailrace, stream: str) -> None:
    """Say three things, then end the stream."""
    stored = await client.publish(stream, "greeting", {"text": "hello"})
    print(f"published {stored.id}")
    await client.publish_many(stream, [Event("progress", {"done": n, "of": 2}) for n in (1, 2)])
    await client.close_stream(stream)


async def subscriber(client: Tailrace, stream: str, since: str | None) -> None:
    """Print everything, from the beginning or after a cursor, until the stream ends."""
    subscription = client.subscribe(stream, since=since)
    async for item in subscription:
        if isinstance(item, Record):
            print(f"{item.id}  {item.type}  {item.data.decode()}")
        elif isinstance(item, Gap):
            print(f"{item.missed} records are gone ({item.reason})")
    print(f"ended; the cursor was {subscription.cursor}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stream", default=f"run:example-{os.getpid()}")
    parser.add_argument("--since", help="a cursor to go on from")
    arguments = parser.parse_args()
    # The address and the token come from TAILRACE_URL and TAILRACE_TOKEN, or name them here.
    async with Tailrace() as client:
        if arguments.since is None:
            await publisher(client, arguments.stream)
        await subscriber(client, arguments.stream, arguments.since)


asyncio.run(main())
