"""At its end a test session has left no process and no temporary folder; one that did fails.

Every child inherits a mark in its environment, so that a daemon in its own session is found too. Only processes that
carry the mark of this session are looked at, and ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest

__all__ = ["MARK", "marked_processes"]

MARK = "TAILRACE_TEST_SESSION"

# Workers of pytest-xdist are children of the session that looks, and inherit its mark.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ[MARK] = f"{os.getpid()}-{uuid.uuid4().hex}"


def marked_processes() -> list[psutil.Process]:
    """Processes started by this session that still run, without the test processes themselves."""
    mark = os.environ[MARK]
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _left_processes(grace: float) -> list[str]:
    """Describe and end what still runs after `grace` seconds: children may be on their way out."""
    end = time.monotonic() + grace
    while (left := marked_processes()) and time.monotonic() < end:
        time.sleep(0.05)
    lines = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            lines.append(f"process {process.pid}: {' '.join(process.cmdline())}")
            process.send_signal(signal.SIGKILL)
    return lines


def _left_folders() -> list[str]:
    mine = {str(pid) for pid in _session_pids}
    return [f"folder {path}" for path in Path("/tmp").glob("tr-test-*") if path.name.split("-")[2] in mine]


_session_pids = {os.getpid()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: object) -> None:
    """Remember the workers' process ids: their folders carry them."""
    info = getattr(node, "workerinfo", None) or {}
    _session_pids.add(int(info.get("pid", os.getpid())))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that left something."""
    if hasattr(session.config, "workerinput"):
        return
    left = _left_processes(grace=5.0) + _left_folders()
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        for line in left:
            if reporter is not None:
                reporter.write_line(f"left behind by the tests: {line}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
