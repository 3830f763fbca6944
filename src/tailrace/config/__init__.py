"""Settings: `TAILRACE_*` variables win over a TOML file, which wins over the defaults.

Units are in the names. Values are checked once, here; a `Settings` never changes afterwards.
"""

from __future__ import annotations

from tailrace.config.settings import Settings, load_settings
from tailrace.config.table import settings_table, unknown_variables
from tailrace.config.types import KindSettings

__all__ = ["KindSettings", "Settings", "load_settings", "settings_table", "unknown_variables"]
