"""`tailrace publish`: arguments, lines, NDJSON."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from tests.cli.conftest import Run, Stored
from tests.support.commands import started
from tests.support.faulty import FaultyProxy


async def test_arguments_are_json_or_texts_and_ids_are_printed(run: Run, stored: Stored) -> None:
    result = await run("publish", "run:1", '{"a": 1}', "hello", "--type", "greeting", "--data", "[2]")

    records = await stored("run:1")
    assert result.code == 0
    assert result.lines == [str(record.id) for record in records]
    assert [(record.type, json.loads(record.data)) for record in records] == [
        ("greeting", {"a": 1}),
        ("greeting", "hello"),
        ("greeting", [2]),
    ]


async def test_lines_of_stdin_are_events_in_order_and_the_stream_can_be_ended(run: Run, stored: Stored) -> None:
    lines = "".join(f"line {n}\n" for n in range(1_000))

    result = await run("publish", "run:1", "--close", "--quiet", stdin=lines.encode())

    assert (result.code, result.out) == (0, "")
    assert [json.loads(record.data) for record in await stored("run:1")] == lines.splitlines()
    assert json.loads((await run("info", "run:1")).out)["state"] == "closed"


async def test_a_line_is_in_the_log_before_the_next_one_is_written(
    run: Run, stored: Stored, tmp_path: Path, environment: dict[str, str]
) -> None:
    async with started("publish", "run:1", cwd=tmp_path, env=environment) as command:
        assert command.process.stdin is not None
        for n in range(3):
            command.process.stdin.write(b"%d\n" % n)
            printed = await command.line()
            assert printed == str((await stored("run:1"))[-1].id)


async def test_ndjson_lines_are_whole_events(run: Run, stored: Stored) -> None:
    lines = b'{"type":"a","data":1,"uid":"x","key":"k"}\n\n{"type":"b"}\n'

    result = await run("publish", "run:1", "--ndjson", stdin=lines)

    first, second = await stored("run:1")
    assert result.code == 0
    assert (first.type, first.data, first.uid, first.key) == ("a", b"1", "x", "k")
    assert (second.type, second.data) == ("b", b"null")


async def test_a_bad_line_is_named_and_those_before_it_are_published(run: Run, stored: Stored) -> None:
    result = await run("publish", "run:1", "--ndjson", stdin=b'{"type":"a"}\n{"type":"stream.x"}\n{"type":"c"}\n')

    assert result.code == 65
    assert "line 2" in result.err
    assert len(result.lines) == 1
    assert [record.type for record in await stored("run:1")] == ["a"]


async def test_a_line_that_is_no_event_is_told_in_the_words_of_a_line(run: Run) -> None:
    odd = await run("publish", "run:1", "--ndjson", stdin=b'{"type":"x","dat":1}\n')

    assert odd.err == "tailrace: line 1: Object contains unknown field `dat`\n"


async def test_an_interrupt_while_it_waits_for_a_line_ends_it_quietly(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    async with started("publish", "run:1", cwd=tmp_path, env=environment) as command:
        assert command.process.stdin is not None
        command.process.stdin.write(b"1\n")
        await command.line()
        command.send(signal.SIGINT)
        async with asyncio.timeout(60):
            await command.process.wait()
        result = await command.end()

    assert (result.code, result.err) == (130, "")


async def test_the_same_uid_is_stored_once(run: Run, stored: Stored) -> None:
    first = await run("publish", "run:1", "x", "--uid", "u")
    again = await run("publish", "run:1", "x", "--uid", "u")
    other = await run("publish", "run:1", "y", "--uid", "u")

    assert again.out == first.out
    assert other.code == 73
    assert len(await stored("run:1")) == 1
    for _ in range(2):
        await run("publish", "run:2", "--uid", "import", stdin=b"1\n2\n")
    assert [record.uid for record in await stored("run:2")] == ["import-1", "import-2"]


async def test_a_lost_answer_does_not_make_a_second_event(run: Run, stored: Stored, proxy: FaultyProxy) -> None:
    proxy.lose_replies = 1

    assert (await run("publish", "run:1", "x")).code == 0
    assert len(await stored("run:1")) == 1


async def test_failures_have_their_own_exit_codes_and_no_traceback(run: Run, proxy: FaultyProxy) -> None:
    results = [
        (64 + 1, await run("publish", "nonsense", "x")),
        (65, await run("publish", "run:1", "x", "--type", "open")),
        (77, await run("publish", "run:1", "x", env={"TAILRACE_TOKEN": "bad"})),
        (78, await run("publish", "run:1", "x", env={"TAILRACE_URL": ""})),
        (78, await run("publish", "run:1", "x", env={"TAILRACE_URL": "ftp://x"})),
        (69, await run("publish", "run:1", "x", env={"TAILRACE_URL": "http://127.0.0.1:1"})),
        (2, await run("publish")),
        (2, await run("publish", "run:1", "x", "--ndjson")),
    ]
    await run("publish", "run:9", "x", "--close")
    results.append((73, await run("publish", "run:9", "y")))

    assert [result.code for _, result in results] == [code for code, _ in results]
    assert not any("Traceback" in result.err for _, result in results)
    assert all(result.err and not result.out for _, result in results)
