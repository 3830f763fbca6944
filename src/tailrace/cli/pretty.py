"""Records for eyes: one line each, output of processes as it was."""

from __future__ import annotations

import os
import re
import shlex
import sys
import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from tailrace.core.event import Degraded, Ended, Gap, Item, Record

__all__ = ["Pretty"]

_RESET, _DIM, _BOLD, _RED, _GREEN, _YELLOW = "\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
_COLOURS = ("\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m", "\x1b[33m", "\x1b[96m", "\x1b[95m", "\x1b[94m")
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_UNSAFE = re.compile(r"\x1b(?!\[[0-9;:]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


class Pretty:
    """Prints items to a terminal.

    Data comes from others: only colours of it reach the terminal, every other control character is shown, not obeyed.
    """

    def __init__(self, streams: Sequence[str], types: list[str] | None) -> None:
        # https://no-color.org: set and not empty.
        self._plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self._several = len(streams) > 1
        self._types = frozenset(types or ())
        self._begun: dict[tuple[str, str], bool] = {}

    def show(self, item: Item) -> None:
        """Print an item."""
        if isinstance(item, Record):
            if not self._types or item.type in self._types:
                self._write(self._record(item))
        elif isinstance(item, Gap):
            self._write(f"{_YELLOW}── {_gap(item)} ──{_RESET}")
        elif isinstance(item, Ended):
            self._write(f"{_DIM}── {item.stream} {_ended(item)} ──{_RESET}")
        elif isinstance(item, Degraded):
            self._write(f"{_DIM}── the log {'does not answer' if item.active else 'answers again'} ──{_RESET}")

    def _write(self, line: str) -> None:
        sys.stdout.write((_COLOUR.sub("", line) if self._plain else line) + "\n")
        sys.stdout.flush()

    def _record(self, record: Record) -> str:
        data = msgspec.json.decode(record.data)
        clock = datetime.fromtimestamp(record.time / 1_000).astimezone().strftime("%H:%M:%S")
        front = f"{_DIM}{clock}{_RESET} "
        if self._several:
            front += f"{_colour(record.stream)}{record.stream}{_RESET} "
        process = _process(record.type, data) if isinstance(data, dict) else None
        if process is not None:
            return front + process
        return f"{front}{_colour(record.type)}{_safe(record.type)}{_RESET} {_value(data)}"


def _process(type_: str, data: Mapping[str, Any]) -> str | None:
    """What `tailrace exec` writes."""
    if type_ == "run.output" and isinstance(data.get("text"), str):
        text = data["text"]
        if data.get("encoding") == "base64":
            text = b64decode(text).decode("utf-8", "backslashreplace")
        bar = f"{_RED}┃{_RESET}" if data.get("stream") == "stderr" else f"{_DIM}│{_RESET}"
        return f"{bar} {_safe(text)}{_RESET}" + (f"{_DIM}⏎̸{_RESET}" if data.get("partial") else "")
    if type_ == "run.started" and isinstance(data.get("argv"), list):
        command = _safe(shlex.join(map(str, data["argv"])))
        return f"{_GREEN}▶{_RESET} {_BOLD}{command}{_RESET} {_DIM}on {_safe(str(data.get('host')))}{_RESET}"
    if type_ == "run.exited" and isinstance(data.get("exit_code"), int):
        code = data["exit_code"]
        how = f"killed by {_safe(str(data['signal']))}" if data.get("signal") else f"exited with {code}"
        return f"{_GREEN if code == 0 else _RED}■{_RESET} {how} {_DIM}after {data.get('seconds')} s{_RESET}"
    return None


def _value(data: Any) -> str:
    if isinstance(data, str):
        return _safe(data)
    if isinstance(data, dict) and len(data) == 1 and isinstance(data.get("text"), str):
        return _safe(data["text"])
    return _safe(msgspec.json.encode(data).decode())


def _safe(text: str) -> str:
    """Colours stay; other control characters become visible pictures."""
    return _UNSAFE.sub(lambda match: chr(0x2400 + ord(match[0])) if ord(match[0]) < 0x20 else "\ufffd", text)


def _colour(word: str) -> str:
    return _COLOURS[zlib.crc32(word.encode()) % len(_COLOURS)]


def _gap(gap: Gap) -> str:
    missed = "records are missing" if gap.missed is None else f"{gap.missed} record{'s' * (gap.missed != 1)} missing"
    return f"{gap.stream}: {missed} after {gap.after} ({gap.reason.value})"


def _ended(ended: Ended) -> str:
    return {"closed": "has ended", "expired": "has expired", "deleted": "was deleted"}.get(
        ended.state.value, ended.state.value
    )
