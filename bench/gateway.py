"""The gateway of a benchmark: settings from the environment, its address on the first line of its output."""

from __future__ import annotations

import sys

from tailrace.config import load_settings
from tailrace.observe import configure_logging
from tailrace.server import run, serve


def main() -> int:
    """Serve until a signal comes."""
    settings = load_settings()
    configure_logging(settings)
    return run(lambda: serve(settings, on_started=lambda address: print(address, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
