from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.features.runs.support import migrated


@pytest.fixture
def sqlite(tmp_path: Path) -> URL:
    """A SQLite database with our tables."""
    return migrated(tmp_path)
