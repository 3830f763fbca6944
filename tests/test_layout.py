"""The shape of the code base: imports point down, importing is quick, files are small and know no machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tailrace"
RANKS = [
    {"codes", "collector"},
    {"errors"},
    {"core"},
    {"config"},
    {"observe"},
    {"eventlog"},
    {"hub", "consumers"},
    {"transports"},
    {"web"},
    {"client"},
    {"sql"},
    {"features"},
    {"integrations"},
    {"app", "worker"},
    {"server"},
    {"cli", "testing"},
    {"__main__"},
]
"""ARCHITECTURE.md: a module imports only from a lower rank, or from its own package."""
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
HEAVY = [
    *("redis", "fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "httpx", "typer", "jwt"),
    *("sqlalchemy", "alembic", "langchain_core", "celery"),
]
FILE_LINES, TEST_LINES, FUNCTION_LINES = 400, 600, 50
EXCUSED: dict[str, str] = {}
"""Files or functions over a budget, each with its reason in one sentence."""
MACHINE = re.compile(
    rf"{re.escape(str(ROOT))}/|/(?:home|root|Users)/\w|https?://[^\s\"')]*(?:pypi|pythonhosted|npmjs)|index-url"
)
TEXTS = {".py", ".lua", ".md", ".json", ".toml", ".js", ".ts", ".css", ".html", ".sh", ".lock", ".yml", ".yaml", ".c"}

sources = sorted(SOURCE.rglob("*.py"))
tests = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every imported module, its line, and whether it is imported with the module (not inside a function)."""
    tree = parse(path)
    inside = {id(node) for function in functions_of(tree) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            yield node.module or "", node.lineno, id(node) not in inside
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) not in inside


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def part_of(module: str) -> str | None:
    """`tailrace.core.ids` → `core`; None outside the package, and for the package itself."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if package == "tailrace" else None


@pytest.mark.parametrize("path", sources, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # It names what others hold, and loads it on first use.
    for module, line, _ in imports_of(path):
        part = part_of(module)
        if part is None or part == own or part.startswith("__"):
            continue
        assert part in RANK, f"{part} has no rank"
        assert RANK[part] < RANK[own], f"{name_of(path)}:{line} imports {module}, which is not below {own}"


def test_every_part_has_a_rank() -> None:
    parts = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in sources}

    assert parts - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("path", sources, ids=name_of)
def test_only_the_log_imports_redis(path: Path) -> None:
    if path.is_relative_to(SOURCE / "eventlog"):
        return
    assert not [module for module, _, _ in imports_of(path) if module.partition(".")[0] in ("redis", "hiredis")]


@pytest.mark.parametrize("path", sources, ids=name_of)
def test_only_sql_and_what_is_above_it_imports_sqlalchemy(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own != "__init__" and RANK[own] >= RANK["sql"]:
        return
    assert not [module for module, _, _ in imports_of(path) if module.partition(".")[0] in ("sqlalchemy", "alembic")]


@pytest.mark.parametrize("path", sorted((SOURCE / "features").rglob("*.py")), ids=name_of)
def test_features_do_not_know_each_other(path: Path) -> None:
    own = path.relative_to(SOURCE / "features").parts[0].removesuffix(".py")
    others = {
        module
        for module, _, _ in imports_of(path)
        if module.startswith("tailrace.features.") and module.split(".")[2] != own
    }

    assert not others


def test_core_is_pure() -> None:
    allowed = {"msgspec", "tailrace"} | (
        set(sys.stdlib_module_names) - {"asyncio", "socket", "ssl", "threading", "time", "random"}
    )
    for path in (SOURCE / "core").rglob("*.py"):
        for module, line, _ in imports_of(path):
            assert module.partition(".")[0] in allowed, f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize(
    "statement", ["import tailrace", "from tailrace import Event, Record, Gap, StreamName, TailraceError"]
)
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", [*sources, *tests], ids=name_of)
def test_files_and_functions_are_small(path: Path) -> None:
    limit = FILE_LINES if path in sources else TEST_LINES
    length = len(path.read_text().splitlines())
    assert length <= limit or name_of(path) in EXCUSED, f"{length} lines"
    for function in functions_of(parse(path)):
        lines = own_lines(function)
        assert lines <= FUNCTION_LINES or f"{name_of(path)}:{function.name}" in EXCUSED, (
            f"{function.name}: {lines} lines"
        )


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of the functions in it: a router is as long as its routes."""
    inner = {
        line
        for child in functions_of(function)
        if child is not function
        for line in range(
            min([child.lineno, *(each.lineno for each in child.decorator_list)]), (child.end_lineno or 0) + 1
        )
    }
    return len(set(range(function.lineno, (function.end_lineno or 0) + 1)) - inner)


@pytest.mark.parametrize("path", sources, ids=name_of)
def test_modules_say_what_they_are_and_what_they_export(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), "no docstring"
    exports = [node for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0])]
    defines = any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in tree.body)
    assert exports or not defines, "no __all__"


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    paths = [*sources, *tests]
    if shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        paths = [ROOT / name for name in listed.stdout.split("\0") if name] or paths
    found = [
        f"{name_of(path)}:{number}: {match[0]}"
        for path in paths
        if path != Path(__file__) and path.is_file() and (path.suffix in TEXTS or not path.suffix)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        for match in [MACHINE.search(line)]
        if match is not None
    ]

    assert found == []
