"""The state machine of `/ws`: messages in, actions out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.codes import CloseCode
from tailrace.core.cursor import Special
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import Forbidden, LogUnavailable
from tailrace.transports.ws_session import (
    STUBBORN,
    Action,
    Append,
    Count,
    End,
    Meter,
    Open,
    Opened,
    Renew,
    Say,
    Session,
    SessionOptions,
    Unread,
    Verdict,
)

RUN, OTHER = StreamName.parse("run:1"), StreamName.parse("run:2")
AT = Opened(ZERO, EntryId(5, 2))


def session(**options: Any) -> Session:
    return Session(SessionOptions(**options), now=0.0)


def tell(
    machine: Session, now: float = 0.0, cursors: dict[StreamName, EntryId] | None = None, **command: Any
) -> Action:
    return machine.on_message(json.dumps(command), cursors or {}, now)


def said(action: Action) -> dict[str, Any]:
    assert isinstance(action, Say), action
    answer: dict[str, Any] = json.loads(action.payload)
    return answer


def read(machine: Session, *streams: StreamName) -> None:
    """Let the machine read these streams."""
    work = tell(machine, cmd="subscribe", id=0, streams=dict.fromkeys(streams, ""))
    assert isinstance(work, Open)
    machine.opened(work, dict.fromkeys(streams, AT))


# -- subscribe ---------------------------------------------------------------------------------------------


def test_subscribe_asks_for_the_stream_at_its_cursor_and_replies_where_it_begins() -> None:
    machine = session()

    work = tell(machine, cmd="subscribe", id=1, stream=RUN, last_id="5-1")

    assert isinstance(work, Open)
    assert [(wish.stream, wish.resume) for wish in work.wishes] == [(RUN, EntryId(5, 1))]
    reply = machine.opened(work, {RUN: Opened(EntryId(5, 1), EntryId(5, 2))})
    assert reply is not None
    assert json.loads(reply) == {"reply": 1, "streams": {RUN: {"cursor": "5-1", "head": "5-2"}}}


def test_several_streams_each_have_their_cursor_and_their_own_refusal() -> None:
    machine = session()

    work = tell(machine, cmd="subscribe", id=1, streams={RUN: "$", OTHER: "0", "no name": "", "run:3": "x-y"})

    assert isinstance(work, Open)
    assert {wish.stream: wish.resume for wish in work.wishes} == {RUN: Special.NOW, OTHER: ZERO}
    reply = machine.opened(work, {RUN: AT, OTHER: Forbidden("not you")})
    assert reply is not None
    answer = json.loads(reply)
    assert list(answer["streams"]) == [RUN]
    codes = {name: error["code"] for name, error in answer["refused"].items()}
    assert codes == {"no name": "INVALID_STREAM", "run:3": "INVALID_CURSOR", OTHER: "FORBIDDEN"}
    assert set(machine.streams) == {RUN}


def test_a_subscribe_that_took_nothing_is_an_error() -> None:
    machine = session()
    work = tell(machine, cmd="subscribe", id=1, stream=RUN)
    assert isinstance(work, Open)

    reply = machine.opened(work, {RUN: LogUnavailable("away")})

    assert reply is not None
    assert json.loads(reply)["error"]["code"] == "LOG_UNAVAILABLE"
    assert not machine.streams


def test_a_stream_is_read_once_on_a_connection() -> None:
    machine = session()
    read(machine, RUN)

    work = tell(machine, cmd="subscribe", id=2, stream=RUN, cursors={RUN: ZERO})

    assert isinstance(work, Open)
    assert not work.wishes
    reply = machine.opened(work, {})
    assert reply is not None
    assert json.loads(reply)["error"]["code"] == "CONFLICT"
    assert set(machine.streams) == {RUN}


def test_a_stream_that_ended_may_be_asked_for_again() -> None:
    machine = session()
    read(machine, RUN, OTHER)
    opening = tell(machine, cmd="subscribe", id=1, stream="run:3")

    ended = machine.forget_ended({OTHER: ZERO})
    work = tell(machine, cmd="subscribe", id=2, stream=RUN)

    assert ended == [RUN], "neither what is read nor what is opening"
    assert isinstance(opening, Open)

    assert isinstance(work, Open)
    assert len(work.wishes) == 1


def test_streams_are_counted_while_they_open() -> None:
    machine = session(max_streams=2)
    tell(machine, cmd="subscribe", id=1, streams={RUN: "", OTHER: ""})

    work = tell(machine, cmd="subscribe", id=2, stream="run:3")

    assert isinstance(work, Open)
    reply = machine.opened(work, {})
    assert reply is not None
    assert json.loads(reply)["error"] == {
        "limit": 2,
        "code": "TOO_LARGE",
        "status": 413,
        "detail": "at most 2 streams on a connection",
    }


def test_a_stream_that_was_unsubscribed_before_it_began_is_not_begun() -> None:
    machine = session()
    work = tell(machine, cmd="subscribe", id=1, stream=RUN)
    assert isinstance(work, Open)

    undone = tell(machine, cmd="unsubscribe", id=2, stream=RUN)
    again = tell(machine, cmd="subscribe", id=3, stream=RUN)

    assert isinstance(undone, Unread)
    assert undone.streams == ()
    assert not machine.is_wanted(work.wishes[0])
    reply = machine.opened(work, {RUN: AT})
    assert reply is not None
    assert json.loads(reply)["error"]["code"] == "CONFLICT"
    assert isinstance(again, Open)
    assert machine.is_wanted(again.wishes[0]), "the later wish is not touched by the earlier one's end"


def test_without_an_id_only_errors_are_answered() -> None:
    machine = session()
    work = tell(machine, cmd="subscribe", stream=RUN)
    assert isinstance(work, Open)

    assert machine.opened(work, {RUN: AT}) is None
    assert tell(machine, cmd="ping") is None
    assert said(tell(machine, cmd="ack", stream=OTHER, last_id="1-1"))["reply"] is None


# -- unsubscribe and lost permissions ----------------------------------------------------------------------


def test_unsubscribe_stops_the_reading_and_replies() -> None:
    machine = session()
    read(machine, RUN, OTHER)

    action = tell(machine, cmd="unsubscribe", id=2, stream=RUN, cursors={RUN: ZERO, OTHER: ZERO})

    assert action == Unread((RUN,), b'{"reply":2}')
    assert set(machine.streams) == {OTHER}


def test_unsubscribing_what_is_not_read_changes_nothing() -> None:
    machine = session()
    read(machine, RUN)

    action = tell(machine, cmd="unsubscribe", id=2, streams=[RUN, OTHER], cursors={RUN: ZERO})

    assert said(action)["error"]["code"] == "NOT_FOUND"
    assert set(machine.streams) == {RUN}


def test_a_lost_permission_ends_one_stream() -> None:
    machine = session()
    read(machine, RUN, OTHER)

    action = machine.denied(RUN)

    assert action is not None
    assert action.streams == (RUN,)
    assert action.payload is not None
    assert json.loads(action.payload)["code"] == CloseCode.FORBIDDEN
    assert set(machine.streams) == {OTHER}
    assert machine.denied(RUN) is None


# -- the other commands ------------------------------------------------------------------------------------


def test_publish_hands_over_checked_events() -> None:
    action = tell(session(), cmd="publish", id=1, stream=RUN, events=[{"type": "a"}, {"type": "b", "data": {"n": 1}}])

    assert isinstance(action, Append)
    assert (action.id, action.stream) == (1, RUN)
    assert [(event.type, bytes(event.data)) for event in action.events] == [("a", b"null"), ("b", b'{"n":1}')]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"stream": "run:1", "events": []}, "MALFORMED"),
        ({"stream": "run:1", "events": {"type": "stream.open"}}, "MALFORMED"),
        ({"stream": "run:1", "events": {"type": "a", "more": 1}}, "MALFORMED"),
        ({"stream": "run:1", "events": "text"}, "MALFORMED"),
        ({"stream": "RUN:1", "events": {"type": "a"}}, "INVALID_STREAM"),
        ({"stream": "run:1", "events": [{"type": "a"}] * 1_001}, "TOO_LARGE"),
    ],
)
def test_what_may_not_be_published_is_refused_with_its_code(fields: dict[str, Any], code: str) -> None:
    assert said(tell(session(), cmd="publish", id=1, **fields))["error"]["code"] == code


def test_ack_counts_what_is_not_yet_acknowledged() -> None:
    machine = session()
    read(machine, RUN)

    answer = said(tell(machine, cmd="ack", id=2, stream=RUN, last_id="5-7", cursors={RUN: EntryId(6, 10)}))

    assert answer == {"reply": 2, "stream": RUN, "unacknowledged": 3}


def test_what_was_not_delivered_cannot_be_acknowledged() -> None:
    machine = session()
    read(machine, RUN)

    answer = said(tell(machine, cmd="ack", id=2, stream=RUN, last_id="6-11", cursors={RUN: EntryId(6, 10)}))

    assert answer["error"]["code"] == "CONFLICT"


def test_presence_and_auth_are_handed_over() -> None:
    assert tell(session(), cmd="presence", id=1, stream=RUN) == Count(1, RUN)
    assert tell(session(), cmd="auth", id=2, token="t") == Renew(2, "t")
    assert said(tell(session(), cmd="ping", id="x")) == {"reply": "x"}


# -- rate and time -----------------------------------------------------------------------------------------


def test_over_the_rate_commands_are_refused_and_pass_again_when_time_went_by() -> None:
    machine = session(commands_per_minute=60)
    for n in range(60):
        assert said(tell(machine, cmd="ping", id=n)) == {"reply": n}

    refused = said(tell(machine, cmd="ping", id=60))

    assert refused["error"]["code"] == "RATE_LIMITED"
    assert refused["error"]["retry_after"] == pytest.approx(1.0)
    assert said(tell(machine, now=1.0, cmd="ping", id=61)) == {"reply": 61}


def test_a_client_that_goes_on_over_the_rate_is_closed() -> None:
    machine = session(commands_per_minute=1)
    answers = [tell(machine, cmd="ping", id=n) for n in range(STUBBORN + 2)]

    assert isinstance(answers[-2], Say)
    assert answers[-1] == End(CloseCode.LIMITED, "too many commands")


def test_nonsense_costs_as_much_as_a_command() -> None:
    machine = session(commands_per_minute=1)

    answers = [machine.on_message("nonsense", {}, 0.0) for _ in range(STUBBORN + 2)]

    assert said(answers[0])["error"]["code"] == "MALFORMED"
    assert isinstance(answers[-1], End)


def test_an_answered_ping_is_free_and_keeps_the_client() -> None:
    machine = session(commands_per_minute=1, idle_seconds=60.0)
    for n in range(100):
        machine.pinged(now=n * 50.0)
        assert not machine.is_gone(n * 50.0 + 49.0)
        assert tell(machine, now=n * 50.0 + 49.0, cmd="pong") is None


def test_a_client_that_answers_no_ping_is_gone() -> None:
    machine = session(idle_seconds=60.0)
    assert not machine.is_gone(1_000.0), "nobody asked"

    machine.pinged(1_000.0)
    machine.pinged(1_015.0)

    assert not machine.is_gone(1_059.0)
    assert machine.is_gone(1_060.0)


@given(st.lists(st.floats(min_value=0, max_value=30), max_size=200))
def test_no_minute_has_more_than_twice_its_commands(pauses: list[float]) -> None:
    meter, now, passed = Meter(120, 0.0), 0.0, []
    for pause in pauses:
        now += pause
        passed += [now for _ in range(20) if meter.take(now) is Verdict.PASS]

    for begin in passed:
        assert sum(begin <= at < begin + 60 for at in passed) <= 240


@given(st.lists(st.text(max_size=40) | st.binary(max_size=40), max_size=30))
def test_whatever_a_client_sends_the_answer_is_an_action(messages: list[str | bytes]) -> None:
    machine = session()
    for message in messages:
        assert isinstance(machine.on_message(message, {}, 0.0), Say)
