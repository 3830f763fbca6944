"""A publishing process of the rehearsal: `python -m tailrace.cli.rehearse.publisher URL NAME WORKFLOWS RATE`.

It publishes as an application would, by `WorkflowPublisher` and a `RolloutView`, and says on stdout which way each
event went. It ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

from tailrace.cli.rehearse.ledger import Sent
from tailrace.core.rollout import Mode
from tailrace.errors import LogError
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.view import RolloutView
from tailrace.features.workflow.message import KIND
from tailrace.features.workflow.publisher import WorkflowPublisher

__all__ = ["main"]

LOOK_SECONDS = 0.2


async def main(url: str, name: str, workflows: int, rate: float) -> None:
    """Publish until stdin ends."""
    store = RedisRollout(url)
    view = RolloutView(store, look_seconds=LOOK_SECONDS)
    async with view.running(), WorkflowPublisher(url, mode=view.mode_of) as publisher:
        counts = publisher.counts
        view.follow_counts(KIND, lambda: (counts.appended + counts.append_errors, counts.append_errors))
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
        loop = asyncio.get_running_loop()
        due, numbers = loop.time(), [0] * workflows
        print("ready", flush=True)
        while not ended.done():
            index = min(range(workflows), key=numbers.__getitem__)
            numbers[index] += 1
            await _publish(publisher, f"{name}-{index}", numbers[index])
            due += 1 / rate
            await asyncio.wait((ended,), timeout=max(0.0, due - loop.time()))
    await store.aclose()


async def _publish(publisher: WorkflowPublisher, workflow: str, number: int) -> None:
    message: dict[str, Any] = {"type": "node_output", "workflow_id": workflow, "n": number}
    try:
        published = await publisher.publish(workflow, message)
        sent = Sent(
            workflow, number, published.mode, failed=published.mode is Mode.DUAL and published.receivers is None
        )
    except LogError:
        sent = Sent(workflow, number, Mode.DUAL, failed=True)
    sys.stdout.buffer.write(msgspec.json.encode(sent) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
