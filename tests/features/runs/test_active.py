"""What a run's code says: steps, text and events, in the order of the calls, from any thread, without waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextvars import copy_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.errors import Fenced, Malformed, TooLarge, UsageError
from tailrace.features.runs.active import CURRENT, current_run, emit
from tailrace.features.runs.ending import RunEnd
from tailrace.features.runs.steps import RunCancelled
from tests.support.active import active_run, text_of
from tests.support.wait import eventually


async def test_steps_begin_and_end_and_know_what_they_are_inside_of() -> None:
    async with active_run() as said:
        async with said.run.step("plan") as plan:
            with said.run.step("search", kind="tool") as search:
                search.emit("found", {"count": 3})
        with pytest.raises(ValueError, match="bad"), said.run.step("write"):
            raise ValueError("bad")
        with pytest.raises(RunCancelled), said.run.step("stop"):
            raise RunCancelled

        events = await said.events()

    assert [(type_, data["step"]) for type_, data in events] == [
        ("step.started", plan.id),
        ("step.started", search.id),
        ("found", search.id),
        ("step.completed", search.id),
        ("step.completed", plan.id),
        ("step.started", "s3"),
        ("step.failed", "s3"),
        ("step.started", "s4"),
        ("step.cancelled", "s4"),
    ]
    assert events[1][1]["parent"] == plan.id
    assert events[1][1]["kind"] == "tool"
    assert events[6][1]["error"] == "ValueError: bad"


async def test_an_error_with_a_whole_document_in_it_is_cut_and_hides_nothing() -> None:
    async with active_run() as said:
        with pytest.raises(ValueError, match="xxx"), said.run.step("write"):
            raise ValueError("x" * 2_000_000)

        end = RunEnd.of(said.run, ValueError("x" * 2_000_000))
        events = await said.events()

    assert events[-1][0] == "step.failed"
    assert events[-1][1]["error"].startswith("ValueError: xxx")
    assert len(end.note()) < 11_000


async def test_a_step_of_a_generator_that_goes_on_in_another_context_ends_there() -> None:
    async with active_run() as said:

        def work() -> Generator[None, None, None]:
            with said.run.step("stream"):
                yield

        parts = work()
        copy_context().run(next, parts)
        copy_context().run(parts.close)

        events = await said.events()

    assert [type_ for type_, _ in events] == ["step.started", "step.cancelled"]


async def test_a_step_ends_once() -> None:
    async with active_run() as said:
        step = said.run.step("plan").start()
        step.complete()

        with pytest.raises(UsageError):
            step.fail("late")


async def test_pieces_of_text_leave_together_and_before_what_is_said_next() -> None:
    async with active_run() as said:
        with said.run.step("write") as step:
            for word in ("one ", "two ", "three "):
                step.token(word)
            step.emit("note")
            step.token("x" * 3_000)
            step.token("end")

        events = await said.events()

    assert [type_ for type_, _ in events] == [
        "step.started",
        "token.delta",
        "note",
        "token.delta",
        "token.delta",
        "step.completed",
    ]
    assert text_of(events, "s1") == "one two three " + "x" * 3_000 + "end"


async def test_text_leaves_after_a_moment_by_itself() -> None:
    async with active_run() as said:
        said.run.token("s1", "hello")

        async def stored() -> bool:
            return (await said.log.info(said.run.stream)).length == 1

        await eventually(stored, 30)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.text(max_size=700)), max_size=30))
@settings(max_examples=25)
def test_the_text_of_each_step_is_what_was_given(pieces: list[tuple[str, str]]) -> None:
    async def say() -> list[tuple[str, object]]:
        async with active_run() as said:
            for step, text in pieces:
                said.run.token(step, text)
            return await said.events()

    events = asyncio.run(say())

    for step in ("a", "b"):
        assert text_of(events, step) == "".join(text for each, text in pieces if each == step)


async def test_threads_say_things_too_each_in_its_order() -> None:
    async with active_run() as said:

        def work(name: str) -> None:
            for number in range(200):
                assert said.run.emit("note", [name, number])

        await asyncio.gather(*(asyncio.to_thread(work, name) for name in "abc"))
        events = await said.events()

    for name in "abc":
        assert [data[1] for _, data in events if data[0] == name] == list(range(200))


async def test_what_is_no_event_is_refused_at_once() -> None:
    async with active_run() as said:
        with pytest.raises(Malformed):
            said.run.emit("stream.gap")
        with pytest.raises(TooLarge):
            said.run.emit("note", "x" * 1_048_576)


async def test_nothing_is_said_once_the_run_is_fenced() -> None:
    async with active_run() as said:
        said.run.emit("note", 1)
        said.run.stop(fenced=True)

        assert not said.run.emit("note", 2)
        with pytest.raises(Fenced):
            said.run.check_cancelled()
        assert [data for _, data in await said.events()] == [1]


async def test_a_cancel_is_seen_in_every_thread() -> None:
    async with active_run() as said:
        seen = threading.Event()

        def work() -> None:
            try:
                while True:
                    said.run.check_cancelled()
            except RunCancelled:
                seen.set()

        working = asyncio.create_task(asyncio.to_thread(work))
        said.run.stop()
        await working

    assert seen.is_set()


async def test_code_anywhere_below_finds_its_run() -> None:
    assert not emit("note")
    async with active_run() as said:
        token = CURRENT.set(said.run)
        assert emit("note", 1)
        assert await asyncio.to_thread(emit, "note", 2)
        assert await asyncio.create_task(asyncio.to_thread(current_run)) is said.run
        CURRENT.reset(token)

        assert [data for _, data in await said.events()] == [1, 2]


async def test_text_that_is_none_is_told_to_who_says_it_and_to_nobody_else() -> None:
    async with active_run() as said:
        with pytest.raises(Malformed):
            said.run.token("s1", "\ud83d")
        said.run.emit("note")
        said.run.close()

        assert [type_ for type_, _ in await said.events()] == ["note"]


async def test_an_error_about_a_file_with_a_name_that_is_no_text_is_told_and_goes_on() -> None:
    error = OSError("caf\udce9")
    async with active_run() as said:
        with pytest.raises(OSError, match="caf"), said.run.step("read"):
            raise error

        assert (await said.events())[-1][1]["error"] == "OSError: caf?"
        assert RunEnd.noted("end:1:1", RunEnd.of(said.run, error).note()) is not None
