"""Help, settings found by themselves, tokens, checks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest

from tailrace.cli.exits import TABLE, ExitCode
from tests.cli.conftest import Run
from tests.support.commands import PROGRAM, clean_environment, on_terminal, run_command
from tests.support.faulty import FaultyProxy
from tests.support.gateways import SECRET, mint

# pydantic is not among them: typer itself imports it for options that have a type.
HEAVY = ("fastapi", "redis", "uvicorn", "httpx", "asyncio", "ssl", "hiredis", "starlette", "tailrace.config")


@pytest.mark.parametrize("arguments", [["--help"], ["exec", "--help"], ["--version"], ["tail", "-h"]])
async def test_help_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from tailrace.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as exc:\n    assert not exc.code\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = await run_command(
        "-c", script, *arguments, cwd=tmp_path, env=clean_environment(tmp_path), program=[sys.executable]
    )

    assert result.lines[-1] == "heavy: []"


async def test_the_help_names_every_command_example_and_exit_code(run: Run) -> None:
    text = (await run("--help")).out

    for word in ("dev", "serve", "exec", "publish", "tail", "info", "token", "doctor", "bench", "Examples"):
        assert word in text
    assert {code for code, _ in TABLE} == set(ExitCode)
    for code, _ in TABLE:
        assert f"{code.value} " in text
    commands = ("dev", "serve", "exec", "publish", "tail", "info", "token", "doctor")
    helps = await asyncio.gather(*(run(command, "--help") for command in commands))
    assert all("Examples" in each.out for each in helps)


async def test_a_data_folder_above_names_the_server_and_the_token(run: Run, tmp_path: Path, proxy: FaultyProxy) -> None:
    folder = tmp_path / ".tailrace"
    folder.mkdir()
    (folder / "url").write_text(proxy.url + "\n")
    (folder / "token").write_text(mint(admin=True) + "\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    env = clean_environment(tmp_path)

    result = await run_command("publish", "run:1", "x", cwd=below, env=env)

    assert result.code == 0
    # The folder's token is not for other servers.
    other = proxy.url.replace("127.0.0.1", "localhost")
    assert (await run_command("publish", "run:1", "x", "--url", other, cwd=below, env=env)).code == 77
    assert (await run_command("publish", "run:1", "x", cwd=below, env=env | {"TAILRACE_TOKEN": "bad"})).code == 77
    assert (await run_command("publish", "run:1", "x", "--token", "bad", cwd=below, env=env)).code == 77


async def test_a_data_folder_of_somebody_else_is_not_used(tmp_path: Path, proxy: FaultyProxy) -> None:
    import os

    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = tmp_path / ".tailrace"
    folder.mkdir()
    (folder / "url").write_text(proxy.url)
    os.chown(folder, 12_345, 12_345)

    result = await run_command("publish", "run:1", "x", cwd=tmp_path, env=clean_environment(tmp_path))

    assert result.code == 78


async def test_info_is_json_lines_when_piped_and_a_table_on_a_terminal(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    await run("publish", "run:1", "a", "b")

    [info] = (await run("info", "run:1")).records
    table = await on_terminal("info", "run:1", cwd=tmp_path, env=environment)

    assert (info["stream"], info["state"], info["length"], info["last_id"][-2:]) == ("run:1", "open", 2, "-2")
    assert "run:1" in table.out
    assert "records" in table.out
    several = await run("info", "run:none", "run:1")
    assert (several.code, [each["stream"] for each in several.records]) == (66, ["run:1"])
    assert "run:none: there is no such stream" in several.err


async def test_a_narrow_terminal_is_shown_whole_ids(run: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    published = (await run("publish", "run:1", "a")).out.strip()

    table = await on_terminal("info", "run:1", cwd=tmp_path, env=environment | {"COLUMNS": "30"})

    assert published in table.out


async def test_an_output_that_cannot_be_written_is_told_in_one_line(run: Run, environment: dict[str, str]) -> None:
    await run("publish", "run:1", "a")

    for arguments in (["tail", "run:1", "--no-follow"], ["info", "run:1"]):
        with open("/dev/full", "wb") as full:
            command = subprocess.Popen([*PROGRAM, *arguments], env=environment, stdout=full, stderr=subprocess.PIPE)
        _, err = await asyncio.to_thread(command.communicate, timeout=30)
        assert (command.returncode, err.decode()) == (1, "tailrace: No space left on device\n"), arguments


async def test_an_address_that_is_no_gateway_is_told_as_such(run: Run) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        results = [await run(*arguments, "--url", url) for arguments in (["tail", "run:1"], ["info", "run:1"])]
        doctor = await run("doctor", "--url", url)

    assert all("not as tailrace does: is this the address of a gateway?" in result.err for result in results)
    assert (doctor.code, "no gateway of tailrace" in doctor.out) == (69, True)
    assert "http://…" in (await run("tail", "run:1", "--url", "localhost:8080")).err


async def test_a_token_says_who_may_do_what_and_for_how_long(run: Run) -> None:
    env = {"TAILRACE_JWT_SECRET": SECRET}
    arguments = ["--sub", "u7", "--read", "run:*", "--write", "run:42", "--ttl", "1h30m"]
    token = (await run("token", *arguments, env=env)).out.strip()

    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert claims["sub"] == "u7"
    assert claims["tailrace"] == {"read": ["run:*"], "write": ["run:42"], "admin": False}
    assert abs(claims["exp"] - time.time() - 5_400) < 60
    assert (await run("publish", "run:42", "x", env={"TAILRACE_TOKEN": token})).code == 0
    assert (await run("publish", "run:43", "x", env={"TAILRACE_TOKEN": token})).code == 77


async def test_a_token_that_could_not_work_is_not_minted(run: Run) -> None:
    env = {"TAILRACE_JWT_SECRET": SECRET}
    odd = await run("token", "--sub", "u", "--read", "run:1", "--write", "*", env=env)
    assert (odd.code, "--write" in odd.err, "neither a stream" in odd.err) == (2, True, True)
    assert (await run("token", "--sub", "u", "--ttl", "soon", env=env)).code == 2
    assert (await run("token", "--sub", "u")).code == 78
    assert (await run("token", "--sub", "u", env={"TAILRACE_JWT_SECRET": "short"})).code == 78


async def test_doctor_looks_at_the_gateway_and_the_token(run: Run) -> None:
    good = await run("doctor")
    bad = await run("doctor", env={"TAILRACE_TOKEN": "bad"})
    gone = await run("doctor", env={"TAILRACE_URL": "http://127.0.0.1:1"})
    odd = await run("doctor", "--strict", env={"TAILRACE_PROT": "1"})

    assert good.code == 0
    assert "is ready" in good.out
    assert bad.code == 77
    assert gone.code == 69
    assert "TAILRACE_PROT" in odd.out
    assert odd.code == 1


async def test_doctor_looks_at_redis(run: Run) -> None:
    result = await run("doctor", "--redis", "redis://127.0.0.1:1")

    assert result.code == 69
    assert "reachable" in result.out


async def test_serve_refuses_what_cannot_work_with_a_word_and_no_traceback(run: Run) -> None:
    no_redis = await run("serve")
    no_key = await run("serve", env={"TAILRACE_REDIS_URL": "redis://127.0.0.1:1"})
    wrong = await run("serve", env={"TAILRACE_MAX_EVENT_BYTES": "many"})

    assert [no_redis.code, no_key.code, wrong.code] == [78, 78, 78]
    assert "TAILRACE_REDIS_URL" in no_redis.err
    assert "TAILRACE_JWT_SECRET" in no_key.err
    assert "max_event_bytes" in wrong.err
    assert not any("Traceback" in each.err for each in (no_redis, no_key, wrong))


async def test_bench_says_where_it_is_to_be_found_when_there_is_none(tmp_path: Path) -> None:
    script = (
        "import tailrace.cli.bench as bench\n"
        "bench.checkout = lambda: None\n"
        "import sys; sys.argv[1:] = ['bench', 'fanout']\n"
        "from tailrace.cli import main; main()\n"
    )
    result = await run_command("-c", script, cwd=tmp_path, env=clean_environment(tmp_path), program=[sys.executable])

    assert result.code == 78
    assert "checkout" in result.err


def test_the_documentation_has_the_same_exit_codes() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text()
    table = page.partition("## Exit codes")[2]

    assert [line for line in table.splitlines() if line.startswith("| ")][1:] == [
        f"| {code.value} | {text} |" for code, text in TABLE
    ]
