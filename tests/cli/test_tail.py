"""`tailrace tail`: live and from anywhere, to its end, over restarts; JSON for programs, readable for people."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Event
from tailrace.eventlog.memory import MemoryLog
from tests.cli.conftest import Run
from tests.support.commands import on_terminal, run_command, started
from tests.support.faulty import FaultyProxy
from tests.support.gateways import gateway_on, mint


async def fill(log: MemoryLog, stream: str, first: int, last: int, *, close: bool = False) -> None:
    async with Tailrace.on(DirectLog.on(log)) as client:
        await client.publish_many(stream, [Event("note", {"n": n}) for n in range(first, last + 1)])
        if close:
            await client.close_stream(stream)


def numbers(lines: list[str]) -> list[int]:
    return [json.loads(line)["data"]["n"] for line in lines if "data" in json.loads(line)]


async def test_a_finished_stream_is_printed_as_json_lines_and_ends(run: Run, log: MemoryLog) -> None:
    await fill(log, "run:1", 1, 3, close=True)

    result = await run("tail", "run:1")

    assert result.code == 0
    assert result.err == ""
    assert [record["data"]["n"] for record in result.records[:-1]] == [1, 2, 3]
    assert set(result.records[0]) == {"id", "prev", "stream", "type", "time", "data"}
    assert (result.records[-1]["control"], result.records[-1]["state"]) == ("closed", "closed")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-n", "2"], [4, 5]),
        (["-n", "0"], []),
        (["--from-start"], [1, 2, 3, 4, 5]),
        (["--since", "0"], [1, 2, 3, 4, 5]),
        (["--since", "1h"], [1, 2, 3, 4, 5]),
        (["--since", "{3}"], [4, 5]),
        (["--no-follow"], [1, 2, 3, 4, 5]),
        (["--no-follow", "-n", "1"], [5]),
        (["--no-follow", "--since", "$"], []),
        (["--no-follow", "--since", "0-0"], [1, 2, 3, 4, 5]),
        (["--no-follow", "--since", "1"], [1, 2, 3, 4, 5]),
        (["--no-follow", "--since", "{3}"], [4, 5]),
        (["--type", "other"], []),
    ],
)
async def test_where_to_begin(run: Run, log: MemoryLog, arguments: list[str], expected: list[int]) -> None:
    await fill(log, "run:1", 1, 5, close=True)
    ids = [record["id"] for record in (await run("tail", "run:1", "--no-follow")).records]

    result = await run("tail", "run:1", *(ids[2] if each == "{3}" else each for each in arguments))

    assert numbers(result.lines) == expected


async def test_it_goes_on_over_a_restart_of_the_gateway(
    tmp_path: Path, log: MemoryLog, environment: dict[str, str], proxy: FaultyProxy
) -> None:
    await fill(log, "run:1", 1, 3)
    async with started("tail", "run:1", cwd=tmp_path, env=environment) as command:
        seen = [await command.line() for _ in range(3)]
        proxy.refusing = True
        proxy.cut()
        await fill(log, "run:1", 4, 6)
        async with gateway_on(log) as (other, _):
            proxy.target_port = other.port
            proxy.refusing = False
            seen += [await command.line() for _ in range(3)]
            await fill(log, "run:1", 7, 7, close=True)
            result = await command.end()

    assert numbers(seen + result.lines) == [1, 2, 3, 4, 5, 6, 7]
    assert result.code == 0
    assert "connection lost" in result.err
    assert "connected again" in result.err


async def test_several_streams_end_when_all_have_ended(run: Run, log: MemoryLog) -> None:
    await fill(log, "run:1", 1, 3, close=True)
    await fill(log, "run:2", 11, 13, close=True)

    result = await run("tail", "run:1", "run:2", "-n", "2")

    assert sorted(numbers(result.lines)) == [2, 3, 12, 13]
    assert [record.get("control") for record in result.records].count("closed") == 2


async def test_on_a_terminal_it_is_readable_and_hostile_data_cannot_move_the_cursor(
    log: MemoryLog, tmp_path: Path, environment: dict[str, str]
) -> None:
    async with Tailrace.on(DirectLog.on(log)) as client:
        await client.publish("run:1", "note", {"text": "up\x1b[2Jdown\x1b[31mred"})
        await client.publish("run:1", "run.output", {"stream": "stderr", "text": "warn\x07ing"})
        await client.publish("run:1", "run.exited", {"exit_code": 1, "seconds": 0.5})
        await client.close_stream("run:1")

    result = await on_terminal("tail", "run:1", cwd=tmp_path, env=environment)

    assert result.code == 0
    assert "\x1b[2J" not in result.out
    assert "\x07" not in result.out
    assert "\x1b[31mred" in result.out
    assert "exited with 1" in result.out
    assert "has ended" in result.out
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.lines[0])
    plain = await on_terminal("tail", "run:1", cwd=tmp_path, env=environment | {"NO_COLOR": "1"})
    assert "\x1b" not in plain.out
    assert "exited with 1" in plain.out


async def test_the_reader_of_the_output_may_go_away(
    log: MemoryLog, tmp_path: Path, environment: dict[str, str]
) -> None:
    await fill(log, "run:1", 1, 900, close=True)

    shell = f"{sys.executable} -m tailrace tail run:1 | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = await run_command("-c", shell, cwd=tmp_path, env=environment, program=["bash"])

    assert json.loads(result.lines[0])["data"] == {"n": 1}
    assert result.lines[1] == "141"
    assert result.err == ""


async def test_an_interrupt_ends_it_quietly(log: MemoryLog, tmp_path: Path, environment: dict[str, str]) -> None:
    await fill(log, "run:1", 1, 1)
    async with started("tail", "run:1", cwd=tmp_path, env=environment) as command:
        await command.line()
        command.send(signal.SIGINT)
        result = await command.end(10)

    assert result.code == 130
    assert result.err == ""


async def test_a_server_that_is_not_there_is_told_at_once(run: Run) -> None:
    result = await run("tail", "run:1", env={"TAILRACE_URL": "http://127.0.0.1:1"})

    assert result.code == 69
    assert "cannot be reached" in result.err


async def test_a_token_that_may_not_read_is_refused(run: Run) -> None:
    result = await run("tail", "run:1", env={"TAILRACE_TOKEN": mint(read=[], write=[])})

    assert result.code == 77


async def test_a_place_that_is_none_is_refused(run: Run) -> None:
    assert (await run("tail", "run:1", "--since", "yesterday")).code == 65
    assert (await run("tail", "run:1", "--since", "2025-13-01")).code == 2
    assert (await run("tail", "run:1", "-n", "1", "--from-start")).code == 2


async def test_who_waits_at_a_terminal_for_a_stream_without_records_is_told_so(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    result = await on_terminal(
        "tail", "run:1", cwd=tmp_path, env=environment, typed=b"\x03", typed_after=b"Ctrl-C ends"
    )

    assert result.code == 130
    assert "nothing new in run:1" in result.out
