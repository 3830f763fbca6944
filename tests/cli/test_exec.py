"""`tailrace exec`: every line once and in order, whoever fails meanwhile; the exit code is the command's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tailrace.core.event import Record
from tests.cli.conftest import Run, Stored
from tests.support.commands import on_terminal, started
from tests.support.faulty import FaultyProxy
from tests.support.wait import eventually


def data(records: Sequence[Record], type_: str = "run.output") -> list[dict[str, Any]]:
    return [json.loads(record.data) for record in records if record.type == type_]


def texts(records: Sequence[Record], output: str = "stdout") -> list[str]:
    return [each["text"] for each in data(records) if each["stream"] == output]


async def test_a_run_has_a_start_its_lines_and_an_exit_and_then_ends(run: Run, stored: Stored, tmp_path: Path) -> None:
    result = await run("exec", "--id", "1", "--", "sh", "-c", "echo one; echo two >&2; exit 3")

    records = await stored("run:1")
    assert (result.code, result.out, result.err) == (3, "one\n", "two\n")
    assert [record.type for record in records] == ["run.started", "run.output", "run.output", "run.exited"]
    [begun], [exited] = data(records, "run.started"), data(records, "run.exited")
    assert begun["argv"][:2] == ["sh", "-c"]
    assert begun["cwd"] == str(tmp_path)
    assert begun["pid"] > 0
    assert begun["host"]
    assert texts(records) == ["one"]
    assert texts(records, "stderr") == ["two"]
    assert (exited["exit_code"], exited["signal"], exited["lines"]) == (3, None, 2)
    assert json.loads((await run("info", "run:1")).out)["state"] == "closed"
    assert list((tmp_path).glob("**/*.spool")) == []


async def test_the_command_knows_its_stream(run: Run) -> None:
    assert (await run("exec", "--id", "x", "--", "sh", "-c", "echo $TAILRACE_STREAM")).out == "run:x\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command-here"], 127),
        (["/etc/passwd"], 126),
    ],
)
async def test_the_exit_code_is_what_a_shell_would_have(run: Run, command: list[str], code: int) -> None:
    assert (await run("exec", "--", *command)).code == code


async def test_without_a_server_to_name_the_command_is_not_run(run: Run, tmp_path: Path) -> None:
    result = await run("exec", "--", "touch", "made", env={"TAILRACE_URL": ""})

    assert result.code == 125
    assert "tailrace dev" in result.err
    assert not (tmp_path / "made").exists()


async def test_a_line_without_an_end_is_shown_after_a_moment_and_marked(run: Run, stored: Stored) -> None:
    script = "\n".join(
        [
            "import sys, time",
            "sys.stdout.write('pass'); sys.stdout.flush(); time.sleep(0.8)",
            "print('word'); sys.stdout.write('end')",
        ]
    )

    await run("exec", "--id", "1", "--", sys.executable, "-c", script)

    pieces = [(each["text"], each.get("partial", False)) for each in data(await stored("run:1"))]
    assert pieces == [("pass", True), ("word", False), ("end", True)]


async def test_long_lines_are_split_and_binary_output_is_base64(run: Run, stored: Stored) -> None:
    script = "import sys; sys.stdout.buffer.write(b'a' * 150_000 + b'\\n' + bytes(range(256)) + b'\\n')"

    result = await run("exec", "--id", "1", "-q", "--", sys.executable, "-c", script)

    pieces = data(await stored("run:1"))
    assert result.out == ""
    assert [len(each["text"]) for each in pieces[:3]] == [65_536, 65_536, 150_000 - 2 * 65_536]
    assert [each.get("partial", False) for each in pieces[:3]] == [True, True, False]
    rest = b"\n".join(
        b64decode(each["text"]) if each.get("encoding") == "base64" else each["text"].encode() for each in pieces[3:]
    )
    assert rest == bytes(range(256))


async def test_a_chatty_command_costs_few_requests_and_keeps_its_order(
    run: Run, stored: Stored, proxy: FaultyProxy
) -> None:
    result = await run("exec", "--id", "1", "--", "seq", "1", "5000")

    assert result.out.split() == [str(n) for n in range(1, 5001)]
    assert texts(await stored("run:1")) == [str(n) for n in range(1, 5001)]


async def test_a_background_process_that_holds_the_output_does_not_hold_the_end(run: Run) -> None:
    result = await run("exec", "--", "sh", "-c", "sleep 20 & echo $!", seconds=10)

    os.kill(int(result.out), signal.SIGKILL)
    assert result.code == 0


# -- bad days --------------------------------------------------------------------------------------------------

_COUNTER = "import time\nfor n in range(300):\n    print(n, flush=True)\n    time.sleep(0.01)\n"


async def test_every_line_comes_once_when_the_server_goes_away_and_comes_back(
    run: Run, stored: Stored, proxy: FaultyProxy
) -> None:
    running = asyncio.ensure_future(run("exec", "--id", "1", "--", sys.executable, "-c", _COUNTER, seconds=60))
    for _ in range(3):
        before = len(await stored("run:1"))

        async def more(before: int = before) -> bool:
            return len(await stored("run:1")) > before

        await eventually(more, 20)
        proxy.refusing = True
        proxy.lose_replies = 1
        proxy.cut()
        await asyncio.sleep(0.3)
        proxy.refusing = False

    result = await running

    assert result.code == 0
    assert result.out.split() == [str(n) for n in range(300)]
    assert texts(await stored("run:1")) == [str(n) for n in range(300)]


async def test_a_run_that_ends_while_the_server_is_away_is_delivered_by_the_next_one(
    run: Run, stored: Stored, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.refusing = True
    result = await run("exec", "--id", "1", "--wait", "0.2", "--", "seq", "3")
    kept = list(tmp_path.glob("**/*.spool"))

    assert result.code == 0
    assert "not delivered" in result.err
    assert len(kept) == 1
    assert kept[0].stat().st_mode & 0o777 == 0o600

    proxy.refusing = False
    await run("exec", "--id", "2", "--", "true")
    assert texts(await stored("run:1")) == ["1", "2", "3"]
    assert (await stored("run:1"))[-1].type == "run.exited"
    assert list(tmp_path.glob("**/*.spool")) == []


async def test_what_was_read_survives_kill_9_of_exec_itself(
    run: Run, stored: Stored, proxy: FaultyProxy, tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = ("exec", "--id", "1", "--", sys.executable, "-c", _COUNTER)
    async with started(*arguments, cwd=tmp_path, env=environment) as command:
        await command.until("^20$")
        proxy.refusing = True
        proxy.lose_replies = 1
        proxy.cut()
        await command.until("^60$")
        os.killpg(command.process.pid, signal.SIGKILL)
        seen = await command.end()

    proxy.refusing = False
    await run("exec", "--id", "2", "--", "true")
    records = await stored("run:1")
    said = texts(records)
    assert said == [str(n) for n in range(len(said))]
    assert len(said) > 60 + len(seen.lines) - 1
    assert [record.type for record in records][-1] == "run.lost"
    assert json.loads((await run("info", "run:1")).out)["state"] == "closed"


async def test_a_full_spool_does_not_stop_the_command_and_the_loss_is_told(
    run: Run, stored: Stored, proxy: FaultyProxy
) -> None:
    proxy.refusing = True
    result = await run("exec", "--id", "1", "--wait", "0", "--spool-bytes", "20000", "--", "seq", "1", "2000")
    proxy.refusing = False
    await run("exec", "--id", "2", "--", "true")

    records = await stored("run:1")
    assert result.code == 0
    assert result.out.split() == [str(n) for n in range(1, 2001)]
    assert "not recorded" in result.err
    [skipped] = data(records, "run.skipped")
    assert skipped["pieces"] + len(data(records)) == 2000
    assert [record.type for record in records][-2:] == ["run.skipped", "run.exited"]


async def test_a_refused_token_keeps_the_output_and_the_exit_code(run: Run, tmp_path: Path) -> None:
    result = await run("exec", "--wait", "0.5", "--", "sh", "-c", "echo hi; exit 4", env={"TAILRACE_TOKEN": "bad"})

    assert (result.code, result.out) == (4, "hi\n")
    assert "not delivered" in result.err
    assert len(list(tmp_path.glob("**/*.spool"))) == 1


# -- signals and terminals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_are_passed_on(
    stored: Stored, tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    script = f"trap 'echo caught; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    async with started("exec", "--id", "1", "--", "sh", "-c", script, cwd=tmp_path, env=environment) as command:
        await command.until("ready")
        command.send(number)
        result = await command.end()

    assert result.code == 9
    assert texts(await stored("run:1")) == ["ready", "caught"]


async def test_a_command_that_ignores_a_cancel_is_killed_after_the_grace_time(
    stored: Stored, tmp_path: Path, environment: dict[str, str]
) -> None:
    script = "trap '' INT TERM; echo ready; while :; do sleep 0.05; done"
    arguments = ("exec", "--id", "1", "--grace", "0.2", "--", "sh", "-c", script)
    async with started(*arguments, cwd=tmp_path, env=environment) as command:
        await command.until("ready")
        command.send(signal.SIGINT)
        result = await command.end(15)

    assert result.code == 137
    assert data(await stored("run:1"), "run.exited")[0]["signal"] == "SIGKILL"


async def test_on_a_terminal_the_command_has_one_too_and_colour_is_kept(
    stored: Stored, tmp_path: Path, environment: dict[str, str]
) -> None:
    script = "test -t 1 && test -t 2 && printf '\\033[31mred\\033[0m\\n'; echo problem >&2"

    result = await on_terminal("exec", "--id", "1", "--", "sh", "-c", script, cwd=tmp_path, env=environment)

    assert result.code == 0
    assert "\x1b[31mred\x1b[0m" in result.out
    records = await stored("run:1")
    assert texts(records) == ["\x1b[31mred\x1b[0m"]
    assert texts(records, "stderr") == ["problem"]
    assert data(records, "run.started")[0]["terminal"]


async def test_what_is_typed_reaches_the_command_and_ctrl_c_is_a_signal(
    stored: Stored, tmp_path: Path, environment: dict[str, str]
) -> None:
    script = "trap 'echo caught; exit 5' INT; read line; echo got $line; while :; do sleep 0.05; done"
    running = asyncio.ensure_future(
        on_terminal("exec", "--id", "1", "--", "sh", "-c", script, cwd=tmp_path, env=environment, typed=b"hello\r")
    )

    async def got() -> bool:
        return "got hello" in texts(await stored("run:1"))

    await eventually(got, 20)
    [begun] = data(await stored("run:1"), "run.started")
    os.kill(begun["pid"], signal.SIGINT)
    result = await running

    assert result.code == 5
    assert "caught" in result.out
