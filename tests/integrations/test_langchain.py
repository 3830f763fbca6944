"""LangChain in a run: with its own fake models, without a network."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    FakeListChatModelError,
    GenericFakeChatModel,
)
from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool

from tailrace.integrations.langchain import RunCallbacks, follow
from tests.support.active import active_run, text_of

ANSWER = "The river carries " + "one more word " * 300


@tool
def depth(place: str) -> str:
    """How deep the river is at a place."""
    return f"3 m at {place}"


@tool
def broken(place: str) -> str:
    """Fails."""
    raise OSError(f"no sensor at {place}")


def steps_of(events: list[tuple[str, Any]], kind: str) -> list[str]:
    return [data["step"] for type_, data in events if type_ == "step.started" and data["kind"] == kind]


def check_nesting(events: list[tuple[str, Any]]) -> None:
    """Every step ends once, after it began, and inside of one that was open."""
    open_: list[str] = []
    for type_, data in events:
        if type_ == "step.started":
            assert data.get("parent") is None or data["parent"] in open_
            open_.append(data["step"])
        elif type_.startswith("step."):
            open_.remove(data["step"])
    assert open_ == []


async def test_callbacks_tell_steps_and_the_streamed_text() -> None:
    async with active_run() as said:
        model = GenericFakeChatModel(messages=iter([AIMessage(ANSWER)]))
        config: Any = {"callbacks": [RunCallbacks(said.run)]}
        chunks = [str(chunk.content) async for chunk in model.astream("how deep?", config=config)]

        events = await said.events()

    (model_step,) = steps_of(events, "model")
    assert text_of(events, model_step) == "".join(chunks) == ANSWER
    assert sum(type_ == "token.delta" for type_, _ in events) < len(chunks) / 2
    check_nesting(events)


async def test_a_model_that_does_not_stream_says_its_text_at_the_end() -> None:
    async with active_run() as said:
        model = FakeListChatModel(responses=["deep"])
        await model.ainvoke("how deep?", config={"callbacks": [RunCallbacks(said.run)]})

        events = await said.events()

    (model_step,) = steps_of(events, "model")
    assert text_of(events, model_step) == "deep"


async def test_a_chain_of_parts_is_steps_inside_of_steps() -> None:
    async with active_run() as said:
        whole = prompt_chain() | RunnableLambda(lambda message: message.content)
        await whole.ainvoke({"question": "deep?"}, config={"callbacks": [RunCallbacks(said.run)]})

        events = await said.events()

    assert len(steps_of(events, "model")) == 1
    assert len(steps_of(events, "chain")) >= 2
    assert any("parent" in data for type_, data in events if type_ == "step.started")
    check_nesting(events)


def prompt_chain() -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_messages([("human", "{question}")]) | FakeListChatModel(responses=["deep"])


async def test_tools_tell_what_they_were_asked_and_answered_and_why_they_failed() -> None:
    async with active_run() as said:
        config: Any = {"callbacks": [RunCallbacks(said.run)]}
        await depth.ainvoke({"place": "the bridge"}, config=config)
        with pytest.raises(OSError, match="no sensor"):
            await broken.ainvoke({"place": "the sea"}, config=config)

        events = await said.events()

    assert [type_ for type_, _ in events] == ["step.started", "step.completed", "step.started", "step.failed"]
    assert "the bridge" in events[0][1]["input"]
    assert events[1][1]["output"] == "3 m at the bridge"
    assert events[3][1]["error"] == "OSError: no sensor at the sea"


async def test_a_model_that_fails_is_a_failed_step_and_the_chain_fails_as_without_us() -> None:
    async with active_run() as said:
        model = FakeListChatModel(responses=["deep"], error_on_chunk_number=2)
        with pytest.raises(FakeListChatModelError):
            async for _ in model.astream("how deep?", config={"callbacks": [RunCallbacks(said.run)]}):
                pass

        events = await said.events()

    assert events[-1][0] == "step.failed"
    assert text_of(events, events[0][1]["step"]) == "de"


async def test_the_events_of_astream_events_pass_through_and_are_told() -> None:
    async with active_run() as said:
        chain_ = prompt_chain() | RunnableLambda(lambda message: depth.invoke({"place": message.content}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            events_of = chain_.astream_events({"question": "deep?"}, version="v2")
            seen = [event["event"] async for event in follow(said.run, events_of)]

        events = await said.events()

    assert seen[0] == "on_chain_start"
    assert "on_chat_model_stream" in seen
    (model_step,) = steps_of(events, "model")
    assert text_of(events, model_step) == "deep"
    (tool_step,) = steps_of(events, "tool")
    assert [data["output"] for type_, data in events if type_ == "step.completed" and data["step"] == tool_step] == [
        "3 m at deep"
    ]
    check_nesting(events)


async def test_what_a_model_of_texts_says_at_once_is_told_from_astream_events() -> None:
    async with active_run() as said:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            events_of = FakeListLLM(responses=["deep"]).astream_events("how deep?", version="v2")
            async for _ in follow(said.run, events_of):
                pass

        events = await said.events()

    (model_step,) = steps_of(events, "model")
    assert text_of(events, model_step) == "deep"


async def test_an_error_in_astream_events_fails_what_was_open() -> None:
    async with active_run() as said:

        def fail(_: Any) -> None:
            raise ValueError("no bed")

        failing = prompt_chain() | RunnableLambda(fail)
        with pytest.raises(ValueError, match="no bed"):
            async for _ in follow(said.run, failing.astream_events({"question": "deep?"}, version="v2")):
                pass

        events = await said.events()

    assert [type_ for type_, _ in events][-1] == "step.failed"
    check_nesting(events)


class Unspeakable:
    """An output that cannot be said."""

    def __str__(self) -> str:
        raise RuntimeError("unspeakable")


async def test_what_cannot_be_told_reaches_the_caller_all_the_same() -> None:
    def event(what: str, id_: str, **data: Any) -> dict[str, Any]:
        return {"event": what, "name": "x", "run_id": id_, "data": data}

    given = [
        event("on_chat_model_start", "m"),
        event("on_chat_model_stream", "m", chunk="half \ud83d"),
        event("on_chat_model_end", "m"),
        event("on_tool_start", "t", input="half \ud83d"),
        event("on_tool_end", "t", output=Unspeakable()),
    ]

    async def events_of() -> AsyncIterator[dict[str, Any]]:
        for each in given:
            yield each

    async with active_run() as said:
        seen = [each async for each in follow(said.run, events_of())]
        callbacks = RunCallbacks(said.run)
        await callbacks.on_llm_start({}, [], run_id=UUID(int=1))
        await callbacks.on_llm_new_token("half \ud83d", run_id=UUID(int=1))
        await callbacks.on_llm_end(LLMResult(generations=[]), run_id=UUID(int=1))

        events = await said.events()

    assert seen == given
    assert text_of(events, "m") == text_of(events, str(UUID(int=1))) == "half ?"
    check_nesting(events)
