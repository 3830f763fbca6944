"""A worker without asyncio that reports its progress; it never waits for the network and survives an outage.

    tailrace dev                                  # in another terminal, same folder
    export TAILRACE_URL=http://127.0.0.1:8080 TAILRACE_TOKEN=$(cat .tailrace/token)
    python examples/sync_worker.py run:import-7 spool

`emit` puts an event into a spool and returns at once. With a folder the spool survives even `kill -9`: the next
worker with the same folder delivers what was left.
"""

from __future__ import annotations

import sys

from tailrace import Record, TailraceSync


def work(client: TailraceSync, stream: str) -> None:
    """Do ten things and say so."""
    client.emit(stream, "import.started", {"rows": 10})
    for row in range(1, 11):
        client.emit(stream, "import.progress", {"row": row}, key="progress")
    client.emit(stream, "import.finished")
    if not client.flush(timeout_seconds=10):
        print("the server is away; the events wait in the spool", file=sys.stderr)


def main() -> None:
    stream = sys.argv[1] if len(sys.argv) > 1 else "run:import"
    folder = sys.argv[2] if len(sys.argv) > 2 else None
    with TailraceSync(spool=folder) as client:
        work(client, stream)
        for record in client.history(stream):
            if isinstance(record, Record):
                print(f"{record.id}  {record.type}  {record.data.decode()}")


main()
