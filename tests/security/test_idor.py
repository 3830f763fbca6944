"""Who gets what from every route, over a real server: all routes x all roles x own, other's and nonexistent streams.

The routes are asked of the application with all features: a new one without a line in `RULES` fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import tailrace.features
from tailrace.core.names import StreamName
from tests.security.routes import PREFIX, Where, all_routes, wheres, whole_app
from tests.security.rules import ID, RULES, Ask, Rule
from tests.security.site import CANARY, OWNERS, STREAMS, THERE, Answer, Site, open_site
from tests.support.tokens import token

ROLES = {
    "anonymous": None,
    "alice": token("alice"),
    "bob": token("bob"),
    "reader": token("reader", read=["run:alices"]),
    "writer": token("writer", write=["run:alices"]),
    "service": token("service", read=["task:*", "workflow:*"], write=["task:*", "workflow:*"]),
    "runner": token("runner", read=["run:*"], write=["run:*"]),
    "admin": token("root", admin=True),
}
WRITING = {Rule.WRITE, Rule.CLOSE, Rule.CANCEL, Rule.MAKE}
RUNS = [each for each in STREAMS if each.startswith("run:")]
MAY: dict[str, set[tuple[Rule, str]]] = {
    **{
        name: {(Rule.READ, f"user:{name}"), *((rule, own) for rule in (Rule.READ, Rule.CANCEL, Rule.READ_ALL))}
        for name, own in (("alice", "run:alices"), ("bob", "run:bobs"))
    },
    "reader": {(Rule.READ, "run:alices")},
    "writer": {(rule, "run:alices") for rule in WRITING},
    "service": {(rule, stream) for rule in {Rule.READ, *WRITING} for stream in ("task:1", "task:none", "workflow:1")},
    "runner": {(rule, run) for rule in {Rule.READ, Rule.READ_ALL, Rule.WRITE_ALL, *WRITING} for run in RUNS},
    "admin": {(rule, stream) for rule in Rule for stream in STREAMS},
}
DONE = {101, 200, 201, 204}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with open_site(tmp_path_factory.mktemp("idor")) as made:
        yield made


async def put(it: Site, where: Where, ask: Ask, role: str, stream: str) -> Answer:
    """Ask as `role`."""
    headers = {"Authorization": f"Bearer {ROLES[role]}"} if ROLES[role] else {}
    name = StreamName.parse(stream).name
    body = json.loads(json.dumps(ask.body).replace(ID, name)) if ask.body is not None else None
    query = ask.query.replace(ID, OWNERS.get(stream, "nobody")) if ask.query is not None else None
    return await it.ask(where, stream, headers, body=body, query=query)


def streams_of(where: Where, rule: Rule) -> list[str]:
    """What to ask a route about."""
    if rule in (Rule.PUBLIC, Rule.KNOWN, Rule.OTHERS):
        return ["run:alices"]
    streams = RUNS if "/runs" in where.path else STREAMS
    if where.path.startswith(PREFIX):
        return streams
    # The same routes at the root run the same functions: one stream of each sort shows that they are guarded too.
    return [each for each in streams if each in ("user:alice", "user:nobody", "run:alices", "run:never")]


def allowed(rule: Rule, role: str, stream: str) -> bool:
    if rule is Rule.PUBLIC:
        return True
    if role == "anonymous":
        return False
    return rule is Rule.KNOWN or (rule, stream) in MAY[role]


def good(where: Where, rule: Rule, stream: str) -> set[int]:
    """What an allowed request may be answered with."""
    if rule in (Rule.MAKE, Rule.WRITE_ALL) and stream in OWNERS:
        return {*DONE, 409}
    by_row = "/runs/" in where.path and not (rule is Rule.READ and where.path.endswith(("/events", "/stream", "/ws")))
    there = stream in THERE and not (by_row and stream not in OWNERS)
    return DONE if there else {*DONE, 404}


def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    assert {where.rule for where in all_routes()} == set(RULES)


def test_every_feature_is_part_of_the_matrix() -> None:
    (folder,) = map(Path, tailrace.features.__path__)
    packages = {each.parent.name for each in folder.glob("*/feature.py")}

    assert {each.name for each in whole_app().state.gateway.features} == packages


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_served_here_has_all_routes(it: Site) -> None:
    assert set(wheres(it.app)) == set(all_routes())


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("where", all_routes(), ids=lambda where: f"{where.method} {where.path}")
async def test_route_gives_to_whom_it_may_and_refuses_all_others_alike(where: Where, it: Site) -> None:
    await it.restore_all()
    for ask in RULES[where.rule]:
        refusals: dict[object, set[str]] = {}
        for role in ROLES:
            for stream in streams_of(where, ask.rule):
                answer = await put(it, where, ask, role, stream)
                said = f"{role} {stream} {ask}: {answer.status} {answer.text}"

                if allowed(ask.rule, role, stream):
                    assert answer.status in good(where, ask.rule, stream), said
                    if where.method not in ("GET", "HEAD", "WS"):
                        await it.restore(stream)
                    continue
                assert answer.status == (401 if role == "anonymous" else 403), said
                assert CANARY not in answer.text
                # Who may write the run is told that a foreign owner is not for them to name.
                group = role, allowed(Rule.WRITE, role, stream)
                refusals.setdefault(group, set()).add(shape(answer, stream))

        for whose, seen in refusals.items():
            assert len(seen) == 1, (whose, seen)


def shape(answer: Answer, stream: str) -> str:
    """An answer without the stream's own name: nothing else may differ, for another's or for one that is not there."""
    headers = sorted(each for each in answer.headers.items() if each[0] not in ("date", "content-length"))
    name = StreamName.parse(stream).name
    return json.dumps([headers, answer.text]).replace(stream, "STREAM").replace(f"/runs/{name}", "/runs/NAME")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("role", ROLES)
async def test_list_shows_only_what_its_reader_may_see(role: str, it: Site) -> None:
    await it.restore_all()

    answer = await put(it, Where("GET", "/api/v1/runs"), Ask(Rule.KNOWN, query="?limit=200"), role, "run:alices")

    found = {each["id"] for each in json.loads(answer.text).get("runs", [])}
    seen = {stream for stream in OWNERS if allowed(Rule.READ_ALL, role, stream)}
    assert {f"run:{each}" for each in found} & set(RUNS) == seen
    assert role in ("runner", "admin") or len(found) == len(seen)


async def guarded(it: Site, role: str, stream: str) -> list[tuple[Any, ...]]:
    """What every guarded route below the prefix answers about a stream that is not for `role`."""
    return [
        (*where, ask.rule, answer.status, shape(answer, stream))
        for where in all_routes()
        for ask in RULES[where.rule]
        if where.path.startswith(PREFIX) and where.takes(stream)
        if ask.rule not in (Rule.PUBLIC, Rule.KNOWN, Rule.OTHERS)
        for answer in [await put(it, where, ask, role, stream)]
    ]


@pytest.mark.parametrize("stream", ["user:alice", "run:alices"])
async def test_refusal_is_the_same_while_the_log_is_away(stream: str, tmp_path: Path) -> None:
    """Permission is decided before the log is asked: neither an answer nor its time can tell what is there."""
    async with open_site(tmp_path) as it:
        await it.restore_all()
        before = await guarded(it, "bob", stream)
        await it.log.aclose()
        after = await guarded(it, "bob", stream)

    assert before == after


async def test_refusal_tells_nothing_of_runs_while_the_database_is_away(tmp_path: Path) -> None:
    """Not even that its owner has just read the run, and is remembered here."""
    page = Where("GET", "/api/v1/streams/{stream}/events")
    async with open_site(tmp_path) as it:
        await it.restore_all()
        assert (await put(it, page, Ask(Rule.READ), "alice", "run:alices")).status == 200
        await it.runs.database.aclose()
        theirs = await guarded(it, "bob", "run:alices")
        nobodys = await guarded(it, "bob", "run:never")
        own = await put(it, page, Ask(Rule.READ), "alice", "run:alices")

    assert theirs == nobodys
    assert own.status == 200


def test_prefix_and_root_are_the_same_routes() -> None:
    paths = {each for each in all_routes() if each.path.startswith(PREFIX) or each.rule[1] not in STATUS}
    assert {(each.method, each.path) for each in paths if each.path.startswith(PREFIX)} == {
        (each.method, PREFIX + each.path) for each in paths if not each.path.startswith(PREFIX)
    }


STATUS = {"/openapi.json", "/healthz", "/readyz", "/metrics"}
"""What is no part of the API."""
