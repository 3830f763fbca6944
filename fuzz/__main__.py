"""`python -m fuzz [TARGET …] [--seconds N]`: every target for its share, guided by coverage where atheris is there."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fuzz import CORPUS, TARGETS

__all__ = ["main"]


def main() -> int:
    """Exit 1 when a target broke; its input is in fuzz/found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--guided", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    targets = given.targets or list(TARGETS)
    if set(targets) - set(TARGETS):
        parser.error(f"the targets are {', '.join(TARGETS)}")
    each = max(1, given.seconds // len(targets))
    found = CORPUS.parent / "found"
    if given.guided:
        guided(targets[0], each, found, given.guided)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: hypothesis without coverage instead")
        return max(blind(target, each, found) for target in targets)
    # libFuzzer ends its process, so each target has one.
    with tempfile.TemporaryDirectory() as folder:
        options = ["--guided", folder, "--seconds", str(each)]
        return max(
            abs(subprocess.run([sys.executable, "-m", "fuzz", target, *options], check=False).returncode)
            for target in targets
        )


def guided(target: str, seconds: int, found: Path, folder: str) -> None:
    """Run one target in this process; does not return. What it learns is in `folder`."""
    import atheris

    with atheris.instrument_imports(include=["tailrace"]):
        check = importlib.import_module(f"fuzz.{target}").check
    found.mkdir(exist_ok=True)
    print(f"fuzz {target}", flush=True)
    learned = Path(folder) / target
    learned.mkdir()
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={found}/{target}-", "-max_len=2000", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(learned), str(CORPUS / target)], check)
    atheris.Fuzz()


def blind(target: str, seconds: int, found: Path) -> int:
    """Without coverage: as the tests do, with new examples until the time is over."""
    from hypothesis import HealthCheck, given, settings
    from tests.fuzz.inputs import inputs

    check: Callable[[bytes], None] = importlib.import_module(f"fuzz.{target}").check
    last = b""

    @settings(max_examples=1_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(target))
    def examples(data: bytes) -> None:
        nonlocal last
        last = data
        check(data)

    print(f"fuzz {target}", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            examples()
        except Exception:
            found.mkdir(exist_ok=True)
            (found / f"{target}-blind").write_bytes(last)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
