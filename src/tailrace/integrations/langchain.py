"""LangChain and LangGraph as a run: what a chain does becomes the run's steps, what a model says becomes their text.

`RunCallbacks` is a callback handler: `await chain.ainvoke(given, config={"callbacks": [RunCallbacks(run)]})`.
`follow` passes the events of `astream_events` through and tells the run of them. Use one of the two for a chain.

Rules of this file
1. A step for every chain, model, tool and retriever, with LangChain's own run id, inside of its parent's.
2. A model's text comes once: as it is streamed, or whole at its end when it was not.
3. Nothing here makes a chain fail or wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from tailrace.features.runs.active import ActiveRun
from tailrace.features.runs.steps import Step

__all__ = ["RunCallbacks", "follow"]

log = logging.getLogger("tailrace.langchain")

E = TypeVar("E", bound=Mapping[str, Any])
MAX_TEXT = 2_000


class _Steps:
    """The open steps of one chain."""

    def __init__(self, run: ActiveRun, max_text: int) -> None:
        self._run = run
        self._max_text = max_text
        self._open: dict[str, Step] = {}
        self._spoke: set[str] = set()

    def start(self, id_: str, name: str, kind: str, parent: str | None, given: Any, metadata: Any = None) -> None:
        facts = self._facts("input", given)
        node = (metadata or {}).get("langgraph_node")
        if node is not None:
            facts["node"] = _sayable(str(node))
        parent = parent if parent in self._open else None
        self._open[id_] = self._run.step(_sayable(name), kind=kind, step_id=id_, parent=parent).start(**facts)

    def text(self, id_: str, content: Any) -> None:
        step, text = self._open.get(id_), _sayable(text_of(content))
        if step is not None and text:
            self._spoke.add(id_)
            step.token(text)

    def end(self, id_: str, output: Any = None, *, whole: Any = None) -> None:
        if whole is not None and id_ not in self._spoke:
            self.text(id_, whole)
        self._spoke.discard(id_)
        step = self._open.pop(id_, None)
        if step is not None:
            step.complete(**self._facts("output", output))

    def fail(self, id_: str, error: BaseException) -> None:
        self._spoke.discard(id_)
        step = self._open.pop(id_, None)
        if step is None:
            return
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            step.cancel()
        else:
            step.fail(error)

    def fail_all(self, error: BaseException) -> None:
        for id_ in reversed(list(self._open)):
            self.fail(id_, error)

    def _facts(self, name: str, value: Any) -> dict[str, Any]:
        if value is None or self._max_text == 0:
            return {}
        try:
            text = _sayable(value if isinstance(value, str) else text_of(value) or str(value))
        except Exception as exc:  # the application's own code makes the text
            log.info("a step's fact cannot be told", extra={"fact": name, "error": type(exc).__name__})
            return {}
        return {name: text if len(text) <= self._max_text else f"{text[: self._max_text]}…"}


class RunCallbacks(AsyncCallbackHandler):
    """Tells a run what a chain does.

    Args:
        run: the run.
        max_text: how many characters of a tool's and retriever's input and output are told; 0: none.
    """

    def __init__(self, run: ActiveRun, *, max_text: int = MAX_TEXT) -> None:
        self._steps = _Steps(run, max_text)

    async def on_chain_start(
        self, serialized: dict[str, Any], inputs: dict[str, Any], *, run_id: UUID, **more: Any
    ) -> None:
        """A chain, or a node of a graph."""
        self._start("chain", serialized, run_id, more)

    async def on_chain_end(self, outputs: dict[str, Any], *, run_id: UUID, **more: Any) -> None:
        """It is done."""
        self._steps.end(str(run_id))

    async def on_chain_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """It failed."""
        self._steps.fail(str(run_id), error)

    async def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **more: Any
    ) -> None:
        """A chat model is asked."""
        self._start("model", serialized, run_id, more)

    async def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **more: Any) -> None:
        """A text model is asked."""
        self._start("model", serialized, run_id, more)

    async def on_llm_new_token(self, token: str | list[str | dict[str, Any]], *, run_id: UUID, **more: Any) -> None:
        """A model says something."""
        self._steps.text(str(run_id), token)

    async def on_llm_end(self, response: LLMResult, *, run_id: UUID, **more: Any) -> None:
        """A model is done."""
        first = response.generations[0][0].text if response.generations and response.generations[0] else None
        self._steps.end(str(run_id), whole=first)

    async def on_llm_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """A model failed."""
        self._steps.fail(str(run_id), error)

    async def on_tool_start(self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, **more: Any) -> None:
        """A tool is called."""
        self._start("tool", serialized, run_id, more, input_str)

    async def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        """It answered."""
        self._steps.end(str(run_id), output)

    async def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """It failed."""
        self._steps.fail(str(run_id), error)

    async def on_retriever_start(self, serialized: dict[str, Any], query: str, *, run_id: UUID, **more: Any) -> None:
        """Documents are looked for."""
        self._start("retriever", serialized, run_id, more, query)

    async def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **more: Any) -> None:
        """They were found."""
        self._steps.end(str(run_id), f"{len(documents)} documents")

    async def on_retriever_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """They were not."""
        self._steps.fail(str(run_id), error)

    def _start(
        self, kind: str, serialized: dict[str, Any] | None, run_id: UUID, more: Mapping[str, Any], given: Any = None
    ) -> None:
        name = more.get("name") or (serialized or {}).get("name") or kind
        parent = more.get("parent_run_id")
        self._steps.start(
            str(run_id), str(name), kind, str(parent) if parent is not None else None, given, more.get("metadata")
        )


_KINDS = {"chat_model": "model", "llm": "model", "chain": "chain", "tool": "tool", "retriever": "retriever"}


async def follow(run: ActiveRun, events: AsyncIterator[E], *, max_text: int = MAX_TEXT) -> AsyncIterator[E]:
    """Pass `astream_events(…, version="v2")` through, and tell the run what they say.

    `async for event in follow(run, chain.astream_events(question)): …`. An error of the chain goes on to the caller;
    the steps that were open have failed.
    """
    steps = _Steps(run, max_text)
    try:
        async for event in events:
            try:
                _tell(steps, event)
            except Exception:
                log.warning("a run could not be told what its chain does", exc_info=True)
            yield event
    except BaseException as error:
        steps.fail_all(error)
        raise


def _tell(steps: _Steps, event: Mapping[str, Any]) -> None:
    what, _, phase = str(event["event"]).removeprefix("on_").rpartition("_")
    kind = _KINDS.get(what)
    if kind is None:
        return
    id_, data = str(event["run_id"]), event.get("data") or {}
    if phase == "start":
        parents = event.get("parent_ids") or [None]
        given = data.get("input") if kind in ("tool", "retriever") else None
        steps.start(id_, str(event.get("name") or kind), kind, parents[-1], given, event.get("metadata"))
    elif phase == "stream" and kind == "model":
        steps.text(id_, data.get("chunk"))
    elif phase == "end":
        output = data.get("output")
        if kind == "model":
            steps.end(id_, whole=output)
        else:
            steps.end(id_, output if kind == "tool" else None)
    elif phase == "error":
        steps.fail(id_, data.get("error") or RuntimeError("it failed"))


def _sayable(text: str) -> str:
    """The text as UTF-8 can have it: some models cut characters in halves."""
    return text.encode(errors="replace").decode()


def text_of(content: Any) -> str:
    """The text of a token, a message, a chunk, or a list of content blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        generations = content.get("generations")
        if generations:  # what a model of texts answered
            return text_of(generations[0][:1])
        text = content.get("text")
        return text if isinstance(text, str) else ""
    if isinstance(content, (list, tuple)):
        return "".join(map(text_of, content))
    inner = getattr(content, "content", None)
    if inner is not None:
        return text_of(inner)
    text = getattr(content, "text", None)
    return text if isinstance(text, str) else ""
