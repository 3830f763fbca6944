"""What a client may say on `/ws`, and how it is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core import commands
from tailrace.errors import (
    DatabaseUnavailable,
    Forbidden,
    LogRefused,
    LogTimeout,
    LogUnavailable,
    Malformed,
    OutcomeUnknown,
    RateLimited,
    TailraceError,
    TooLarge,
)

GOOD: list[tuple[str, commands.Command]] = [
    ('{"cmd":"subscribe","id":1,"stream":"run:1"}', commands.Subscribe(id=1, stream="run:1")),
    (
        '{"cmd":"subscribe","stream":"run:1","last_id":"5-1"}',
        commands.Subscribe(stream="run:1", last_id="5-1"),
    ),
    (
        '{"cmd":"subscribe","id":"a","streams":{"run:1":"","run:2":"$"}}',
        commands.Subscribe(id="a", streams={"run:1": "", "run:2": "$"}),
    ),
    ('{"cmd":"unsubscribe","id":2,"stream":"run:1"}', commands.Unsubscribe(id=2, stream="run:1")),
    ('{"cmd":"unsubscribe","streams":["run:1"]}', commands.Unsubscribe(streams=["run:1"])),
    ('{"cmd":"ack","id":3,"stream":"run:1","last_id":"5-1"}', commands.Ack(id=3, stream="run:1", last_id="5-1")),
    ('{"cmd":"presence","id":4,"stream":"run:1"}', commands.Presence(id=4, stream="run:1")),
    ('{"cmd":"ping","id":5}', commands.Ping(id=5)),
    ('{"cmd":"pong"}', commands.Pong()),
    ('{"id":6,"token":"t","cmd":"auth"}', commands.Auth(id=6, token="t")),
]

BAD: list[tuple[str, Any]] = [
    ("", None),
    ("null", None),
    ("[]", None),
    ('"ping"', None),
    ("{", None),
    ("{}", None),
    ('{"cmd":"ping","id":true}', None),
    ('{"cmd":"ping","id":1.5}', None),
    ('{"cmd":"ping","id":9007199254740992}', None),
    ('{"cmd":"ping","id":""}', None),
    (json.dumps({"cmd": "ping", "id": "x" * 65}), None),
    ('{"cmd":"ping","id":7,"more":1}', 7),
    ('{"cmd":"pingpong","id":7}', 7),
    ('{"cmd":7,"id":"a"}', "a"),
    ('{"cmd":"subscribe","id":7}', 7),
    ('{"cmd":"subscribe","id":7,"stream":"run:1","streams":{"run:2":""}}', 7),
    ('{"cmd":"subscribe","id":7,"streams":{}}', 7),
    ('{"cmd":"subscribe","id":7,"streams":["run:1"]}', 7),
    ('{"cmd":"subscribe","id":7,"streams":{"run:1":""},"last_id":"0"}', 7),
    (json.dumps({"cmd": "subscribe", "id": 7, "streams": {f"run:{n}": "" for n in range(501)}}), 7),
    ('{"cmd":"unsubscribe","id":7,"streams":[]}', 7),
    ('{"cmd":"publish","id":7,"stream":"run:1"}', 7),
    ('{"cmd":"ack","id":7,"stream":"run:1"}', 7),
    ('{"cmd":"auth","id":7,"token":""}', 7),
    (json.dumps({"cmd": "auth", "id": 7, "token": "x" * 8_193}), 7),
    ('{"cmd":"ping","id":7}x', None),
    ("[" * 5_000, None),
    ('{"cmd":"publish","id":7,"events":' + "[" * 5_000 + "]" * 5_000 + "}", None),
]


@pytest.mark.parametrize(("text", "command"), GOOD, ids=[text[:40] for text, _ in GOOD])
def test_a_command_is_read(text: str, command: commands.Command) -> None:
    assert commands.decode_command(text) == command
    assert commands.decode_command(text.encode()) == command


def test_published_events_are_kept_as_they_were_written() -> None:
    command = commands.decode_command('{"cmd":"publish","id":1,"stream":"run:1","events": [ {"type": "a"} ] }')

    assert isinstance(command, commands.Publish)
    assert bytes(command.events).strip() == b'[ {"type": "a"} ]'


@pytest.mark.parametrize(("text", "reply"), BAD, ids=[text[:40] for text, _ in BAD])
def test_what_is_no_command_is_refused_with_the_id_it_had(text: str, reply: Any) -> None:
    with pytest.raises(Malformed) as caught:
        commands.decode_command(text)

    assert caught.value.data["reply"] == reply


@given(st.binary(max_size=400) | st.text(max_size=200))
def test_nothing_but_malformed_is_raised(text: str | bytes) -> None:
    try:
        commands.decode_command(text)
    except Malformed as error:
        assert "reply" in error.data  # noqa: PT017 - any input may be a command


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Forbidden("no", stream="run:1"), {"code": "FORBIDDEN", "status": 403, "detail": "no", "stream": "run:1"}),
        (TooLarge("big", limit=5), {"code": "TOO_LARGE", "status": 413, "detail": "big", "limit": 5}),
        (
            RateLimited("slow", retry_after=2.0),
            {"code": "RATE_LIMITED", "status": 429, "detail": "slow", "retry_after": 2.0},
        ),
        (
            LogUnavailable("10.0.0.1:6379 cannot be reached", retry_after=3.0),
            {"code": "LOG_UNAVAILABLE", "status": 503, "detail": "the log is not available", "retry_after": 3.0},
        ),
        (
            LogTimeout("the log did not answer: 10.0.0.1:6379 is slow"),
            {"code": "LOG_TIMEOUT", "status": 503, "detail": "the log did not answer", "retry_after": 1.0},
        ),
        (
            LogRefused("the log refused: OOM"),
            {"code": "LOG_REFUSED", "status": 503, "detail": "the log refused: OOM", "retry_after": 1.0},
        ),
        (
            OutcomeUnknown("10.0.0.1:6379 did not answer in time", receipt=object()),
            {
                "code": "OUTCOME_UNKNOWN",
                "status": 503,
                "detail": "the log did not say whether it stored the events",
                "retry_after": 1.0,
            },
        ),
        (
            DatabaseUnavailable('the database does not answer: connection to server at "10.0.0.1"'),
            {"code": "DATABASE_UNAVAILABLE", "status": 503, "detail": "the database does not answer"},
        ),
        (TailraceError("a secret of ours"), {"code": "INTERNAL", "status": 500}),
        (Malformed("bad", reply=7, nested={"a": 1}), {"code": "MALFORMED", "status": 400, "detail": "bad"}),
    ],
)
def test_an_error_shows_what_is_safe(error: TailraceError, shown: dict[str, Any]) -> None:
    assert commands.error_fields(error) == shown
    assert json.loads(commands.error_reply(9, error)) == {"reply": 9, "error": shown}


def test_the_loss_of_a_permission_names_the_stream_and_a_code_that_says_stay_away() -> None:
    payload = json.loads(commands.unsubscribed_payload("run:1", Forbidden("no more")))

    assert (payload["control"], payload["stream"], payload["code"]) == ("unsubscribed", "run:1", 4502)
    assert payload["error"]["code"] == "FORBIDDEN"


def test_a_good_reply_has_the_commands_id_and_its_fields() -> None:
    assert json.loads(commands.reply("a", {"stream": "run:1"})) == {"reply": "a", "stream": "run:1"}
    assert json.loads(commands.reply(None)) == {"reply": None}


def test_the_heartbeat_is_a_control() -> None:
    assert json.loads(commands.ping_payload()) == {"control": "ping"}
