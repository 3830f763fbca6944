"""The process of a `KilledWriter`: says what it tries before it does, and what it was told after.

python -m tests.chaos.writing http TOKEN URL[,URL…] STREAM NAME FIRST
python -m tests.chaos.writing log PREFIX REDIS-URL STREAM NAME FIRST
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys

from tests.chaos.judge import Attempt, Board
from tests.chaos.writers import HttpWriter, LogWriter, Writer

__all__: list[str] = []


def _say(*words: object) -> None:
    print(*words, flush=True)


async def _main(way: str, secret: str, target: str, stream: str, name: str, first: str) -> None:
    board = Board()
    urls = itertools.cycle(target.split(","))
    writer: Writer
    if way == "http":
        writer = HttpWriter(board, name, [stream], url=lambda: next(urls), token=secret)
    else:
        writer = LogWriter(board, name, [stream], url=target, key_prefix=secret)

    def failed() -> None:
        _say("failed")
        while board.violations:
            _say("broken", board.violations.pop())

    writer.failed = failed  # type: ignore[method-assign]  # told to the process that watches
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for number in itertools.count(int(first)):
        _say("try", number)
        attempt = Attempt(name, stream, f"{name}/{number}")
        (stored,) = await writer.settle([attempt], [writer.body(attempt)])
        _say("acked", stored)
        if ended.done():
            return
        await asyncio.sleep(random.uniform(0, 0.1))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
