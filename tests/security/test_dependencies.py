"""What is installed is pinned by hash, complete, and from nowhere in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
_ENTRY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(lock: Path) -> dict[str, str]:
    """Every requirement with the text that belongs to it."""
    found: dict[str, str] = {}
    name = ""
    for line in lock.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            match = _ENTRY.match(line)
            assert match is not None, f"{lock.name}: {line!r} pins no version"
            name = normal(match[1])
            assert name not in found, f"{lock.name}: {name} is there twice"
            found[name] = ""
        found[name] += line + "\n"
    return found


def declared(group: str) -> set[str]:
    """The packages that pyproject.toml names for a lock file, with the groups inside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {_name(each) for each in project["project"]["dependencies"]}

    def add(name: str) -> None:
        for each in project["dependency-groups"][name]:
            if isinstance(each, dict):
                add(each["include-group"])
            else:
                wanted.add(_name(each))

    add(group)
    return wanted


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return normal(found[0])


def test_there_are_lock_files() -> None:
    assert {lock.name for lock in LOCKS} >= {"run.lock", "dev.lock", "redis50.lock"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_pinned_by_hash_and_names_no_place(lock: Path) -> None:
    text = lock.read_text()

    assert "://" not in text
    assert not re.search(r"^\s*(-[ife]\b|--(extra-)?index|--find-links|--trusted-host)", text, re.M)
    for name, entry in entries(lock).items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}(\s|$)", entry), name
        assert "--hash=md5" not in entry, name
        assert " @ " not in entry, name


@pytest.mark.parametrize(("lock", "group"), [("run", "build"), ("dev", "dev")])
def test_lock_file_has_all_that_the_project_names(lock: str, group: str) -> None:
    assert declared(group) - set(entries(ROOT / "requirements" / f"{lock}.lock")) == set()


def test_what_is_tested_is_what_runs() -> None:
    run, dev = (entries(ROOT / "requirements" / f"{name}.lock") for name in ("run", "dev"))

    pinned = {name: _ENTRY.match(entry) for name, entry in run.items()}
    for name, match in pinned.items():
        assert match is not None
        assert dev[name].startswith(match[0]), name


def test_set_up_installs_by_hash() -> None:
    assert "--require-hashes" in (ROOT / "scripts" / "setup").read_text()
