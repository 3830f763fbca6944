"""The settings as a table, and the variables that are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import AliasChoices

from tailrace.config.settings import PREFIX, Settings

__all__ = ["settings_table", "unknown_variables"]


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The `TAILRACE_*` variables that name no setting: most likely typing errors, worth a warning."""
    known = {f"{PREFIX}CONFIG"} | {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in environ if name.startswith(PREFIX) and name.upper() not in known)


def settings_table() -> str:
    """Every setting as a Markdown table, for the documentation."""
    lines = ["| Variable | TOML | Default | What |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = f"`{PREFIX}{name.upper()}`" if name != "kinds" else ""
        if isinstance(field.validation_alias, AliasChoices):
            variable = ", ".join(f"`{choice}`" for choice in field.validation_alias.choices)
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        choices = get_args(field.annotation)
        if choices and all(isinstance(choice, str) for choice in choices):
            text += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
        lines.append(f"| {variable} | `{name}` | {_default(field.default)} | {text} |")
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) and value < 1e6 else f"`{value}`"
