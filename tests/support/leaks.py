"""At its end a test session has left no process and no temporary folder; one that did fails.

Every child inherits a mark in its environment, so that a daemon in its own session is found too. Only processes that
carry the mark of this session are looked at, and ended.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest

__all__ = ["MARK", "folder_prefix", "marked_processes"]

MARK = "TR_TEST_SESSION"

# Workers of pytest-xdist are children of the session that looks, and inherit its mark.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ[MARK] = f"{os.getpid()}-{uuid.uuid4().hex}"
    # Embedded servers put their sockets here; one whose owner a test kills cannot clear up after itself.
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix=f"tr-test-{os.getpid()}-", dir="/tmp")
    atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)


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


def folder_prefix() -> str:
    """How the names of this session's temporary folders begin."""
    return f"tr-test-{os.environ[MARK].split('-')[0]}-"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that left something."""
    if hasattr(session.config, "workerinput"):
        return
    left = _left_processes(grace=5.0)
    shutil.rmtree(os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)
    left += [f"folder {path}" for path in Path("/tmp").glob(folder_prefix() + "*")]
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        for line in left:
            if reporter is not None:
                reporter.write_line(f"left behind by the tests: {line}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
