"""The cases of conformance/, which every implementation of the protocol runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.codes import CloseCode, may_return
from tailrace.core import chain, codec, commands, cursor, frames, sse
from tailrace.core.event import Degraded, Ended, Gap, GapReason, Item, Json, Record, StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName, check_type, escape_name
from tailrace.core.page import Head, Page
from tailrace.errors import InvalidCursor, InvalidStream, Malformed, TailraceError
from tailrace.features.runs.model import Run, RunStatus, ends_anew, last_events, run_stream
from tailrace.features.workflow.message import event_of

FOLDER = Path(__file__).parents[2] / "conformance"
Case = dict[str, Any]
STREAM = StreamName.parse("run:42")


def load(name: str) -> dict[str, Any]:
    topic: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return topic


# -- names, types, ids ---------------------------------------------------------------------------------------


def check_names(case: Case) -> None:
    if case["valid"]:
        name = StreamName.parse(case["text"])
        assert (str(name), name.kind, name.name) == (case["text"], case["kind"], case["name"])
    else:
        with pytest.raises(InvalidStream):
            StreamName.parse(case["text"])


def check_escape(case: Case) -> None:
    if case["name"] is None:
        with pytest.raises(InvalidStream):
            escape_name(case["text"])
    else:
        assert escape_name(case["text"]) == case["name"]
        assert StreamName.parse(f"user:{case['name']}").name == case["name"]


def check_types(case: Case) -> None:
    if case["valid"]:
        assert check_type(case["text"]) == case["text"]
    else:
        with pytest.raises(Malformed):
            check_type(case["text"])


def check_ids(case: Case) -> None:
    if case["valid"]:
        entry = EntryId.parse(case["text"])
        assert (str(entry.ms), str(entry.seq), str(entry)) == (case["ms"], case["seq"], case["text"])
    else:
        with pytest.raises(InvalidCursor):
            EntryId.parse(case["text"])


def test_ids_are_ordered_by_their_numbers() -> None:
    texts = load("ids")["order"]

    assert [str(entry) for entry in sorted(EntryId.parse(text) for text in reversed(texts))] == texts


# -- cursors -------------------------------------------------------------------------------------------------


def place(resume: cursor.Resume) -> tuple[str, str]:
    if isinstance(resume, cursor.Since):
        return "time", str(resume.ms)
    if isinstance(resume, cursor.Special):
        return ("now", "") if resume is cursor.Special.NOW else ("default", "")
    return "id", str(resume)


def check_cursors(case: Case) -> None:
    if case["is"] == "invalid":
        with pytest.raises(InvalidCursor):
            cursor.parse_resume(case["text"])
    else:
        assert place(cursor.parse_resume(case["text"])) == (case["is"], case.get("value", ""))


def check_tokens(case: Case) -> None:
    streams = [StreamName.parse(name) for name in case["streams"]]
    if case["places"] is None:
        with pytest.raises(InvalidCursor):
            cursor.parse_cursor(case["text"], streams)
        return
    expected = {name: cursor.parse_resume(text) for name, text in case["places"].items()}
    assert cursor.parse_cursor(case["text"], streams) == expected
    if case.get("format"):
        ids = {StreamName.parse(name): EntryId.parse(text) for name, text in case["places"].items()}
        assert cursor.format_cursor(ids) == case["text"]


def test_names_have_the_hashes_of_the_protocol() -> None:
    hashes = load("tokens")["hashes"]

    assert {name: cursor.name_hash(StreamName.parse(name)).hex() for name in hashes} == hashes


# -- data ----------------------------------------------------------------------------------------------------


def check_minify(case: Case) -> None:
    raw = bytes.fromhex(case["hex"]) if "hex" in case else case["input"]
    if case["output"] is None:
        with pytest.raises(Malformed):
            codec.minify(raw, max_bytes=1_048_576)
    else:
        assert codec.minify(raw, max_bytes=1_048_576) == case["output"].encode()
        assert codec.minify(case["input"].encode(), max_bytes=1_048_576) == case["output"].encode()


# -- SSE -----------------------------------------------------------------------------------------------------


def chunkings(raw: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and cut in two at every place."""
    yield [raw]
    yield [raw[i : i + 1] for i in range(len(raw))]
    for cut in range(len(raw) + 1):
        yield [raw[:cut], raw[cut:]]


def check_sse_parse(case: Case) -> None:
    raw = bytes.fromhex(case["hex"]) if "hex" in case else case["input"].encode()
    for chunks in chunkings(raw):
        for comments in (False, True):
            parser = sse.SseParser(comments=comments)
            found = [item for chunk in chunks for item in parser.feed(chunk)]
            events = [msgspec.structs.asdict(item) for item in found if isinstance(item, sse.ServerEvent)]
            assert events == case["events"], chunks
            if "comments" in case and comments:
                assert [item.text for item in found if isinstance(item, sse.SseComment)] == case["comments"]
            if "last_event_id" in case:
                assert parser.last_event_id == case["last_event_id"]
            assert parser.retry_ms == case.get("retry")


def check_sse_encode(case: Case) -> None:
    fields = {name: value for name, value in case.items() if name not in ("output", "retry")}
    if case["output"] is None:
        with pytest.raises(Malformed):
            sse.encode_event(**fields, retry_ms=case.get("retry"))
    else:
        assert sse.encode_event(**fields, retry_ms=case.get("retry")) == case["output"].encode()


# -- frames --------------------------------------------------------------------------------------------------


def maybe_id(text: str | None) -> EntryId | None:
    return EntryId.parse(text) if text is not None else None


def read_gap(fields: Case) -> Gap:
    return Gap(
        STREAM,
        EntryId.parse(fields["after"]),
        maybe_id(fields["before"]),
        fields["missed"],
        GapReason(fields["reason"]),
        EntryId.parse(fields["cursor"]),
    )


def read_item(item: Case) -> Item:
    [(kind, fields)] = item.items()
    if kind == "gap":
        return read_gap(fields)
    if kind == "ended":
        return Ended(STREAM, EntryId.parse(fields["at"]), StreamState(fields["state"]))
    if kind == "degraded":
        return Degraded(**fields)
    labels = {name: fields.get(name) for name in ("uid", "key", "actor", "trace")}
    data = Json(fields["data"].encode())
    return Record(
        STREAM, EntryId.parse(fields["id"]), maybe_id(fields["prev"]), fields["type"], data, fields["time"], **labels
    )


def check_frames(case: Case) -> None:
    item = read_item(case["item"])
    for form in ("envelope", "raw"):
        text = case[form].encode()
        assert frames.WsForm(form).item(item) == text
        json.loads(text)
        for named in (True, False):
            for with_id in (True, False):
                id_ = f"id: {case['id']}\n" if case["id"] is not None and with_id else ""
                name = f"event: {case['event']}\n" if named or not isinstance(item, Record) else ""
                expected = f"{id_}{name}data: ".encode() + text + b"\n\n"
                assert frames.SseForm(form, named=named, with_id=with_id).item(item) == expected


def test_the_heartbeat_is_a_bare_colon() -> None:
    assert load("frames")["heartbeat"].encode() == frames.HEARTBEAT


# -- the chain -----------------------------------------------------------------------------------------------


def read_page(page: Case) -> Page:
    records = tuple(
        Record(STREAM, EntryId.parse(id_), maybe_id(prev), "a", Json(b"1"), 0) for id_, prev in page["entries"]
    )
    head = page["head"]
    return Page(
        records,
        page["more"],
        Head(
            EntryId.parse(head["id"]),
            StreamState(head["state"]),
            head.get("incarnation", 1),
            EntryId.parse(head.get("base", "0-0")),
            GapReason(head.get("base_reason", "reset")),
        ),
        maybe_id(page["first"]),
    )


def read_given(item: Any, page: Page) -> Item:
    return next(r for r in page.records if str(r.id) == item) if isinstance(item, str) else read_item(item)


def check_chain(case: Case) -> None:
    asked, page = case["position"], read_page(case["page"])
    if "start" in asked:
        position = chain.start(EntryId.parse(asked["start"]))
    else:
        position = chain.Position(EntryId.parse(asked["cursor"]), maybe_id(asked["chained"]), asked["proven"])

    items, after = chain.advance(STREAM, position, page)

    assert items == [read_given(item, page) for item in case["items"]]
    assert (after.cursor, after.chained) == (EntryId.parse(case["after"]["cursor"]), maybe_id(case["after"]["chained"]))


# -- codes and commands --------------------------------------------------------------------------------------


def check_close_codes(case: Case) -> None:
    assert may_return(case["code"]) is case["return"]
    if case["name"] is not None:
        assert CloseCode(case["code"]).name == case["name"]


def test_every_close_code_has_a_case() -> None:
    named = {case["code"] for case in load("close-codes")["cases"] if case["name"] is not None}

    assert named == set(CloseCode)


def check_commands(case: Case) -> None:
    if case["command"] is None:
        with pytest.raises(Malformed) as caught:
            commands.decode_command(case["text"])
        assert caught.value.data["reply"] == case["reply"]
        return
    command = msgspec.to_builtins(commands.decode_command(case["text"]))
    assert {name: command[name] for name in case["command"]} == case["command"]


def check_workflow(case: Case) -> None:
    if "payload" in case:
        at = EntryId.parse(case["cursor"]) if case["cursor"] else None
        way = {name: case[name] for name in ("mode", "resumable", "reason")}
        payload = frames.mode_payload(StreamName.parse(case["stream"]), cursor=at, **way)
        assert payload == case["payload"].encode()
        return
    text = bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode()
    event = event_of(text)
    assert event.type == case["type"]
    assert codec.encode(event.data, max_bytes=1_000) == case["data"].encode()


def outcome(run: Run, epoch: int | None, status: str, error: str | None, result: Any) -> str:
    try:
        return "ended" if ends_anew(run, epoch, RunStatus(status), error, result) else "same"
    except TailraceError as refused:
        return refused.code


def check_runs(case: Case) -> None:
    if "id" in case:
        if case["stream"] is None:
            with pytest.raises(Malformed):
                run_stream(case["id"])
        else:
            assert run_stream(case["id"]) == case["stream"]
        return
    run = msgspec.convert(case["run"], Run)
    if "last" in case:
        assert [{"type": each.type, "uid": each.uid, "data": each.data} for each in last_events(run)] == case["last"]
        return
    assert outcome(run, **case["end"]) == case["is"]


CHECKS: dict[str, Callable[[Case], None]] = {
    "workflow": check_workflow,
    "runs": check_runs,
    "names": check_names,
    "escape": check_escape,
    "types": check_types,
    "ids": check_ids,
    "cursors": check_cursors,
    "tokens": check_tokens,
    "minify": check_minify,
    "sse-parse": check_sse_parse,
    "sse-encode": check_sse_encode,
    "frames": check_frames,
    "chain": check_chain,
    "close-codes": check_close_codes,
    "commands": check_commands,
}


@pytest.mark.parametrize(
    ("topic", "case"),
    [
        pytest.param(topic, case, id=f"{topic}-{case.get('why') or index}")
        for topic in CHECKS
        for index, case in enumerate(load(topic)["cases"])
    ],
)
def test_conformance(topic: str, case: Case) -> None:
    CHECKS[topic](case)


def test_every_topic_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CHECKS)
