"""What the OpenAPI document says is what the service does, asked with what fits the schema and with what does not.

Answers that never end (`/stream`) are left out, and a long-poll waits no time; WebSockets are not in the document.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tailrace.app import create_app
from tests.support.gateway import settings_of
from tests.support.redis_servers import RedisServer
from tests.support.serving import serving
from tests.support.tokens import token

CHECKS: list[Any] = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
ROOT = {"Authorization": f"Bearer {token('root', admin=True)}"}
EXAMPLES = 10
"""Of each operation, good and bad."""


def document() -> dict[str, Any]:
    """What a client would read, without the operations whose answers do not end."""
    made: dict[str, Any] = create_app(settings_of(redis_url="redis://127.0.0.1:1", runs_enabled=True)).openapi()
    made["paths"] = {path: each for path, each in made["paths"].items() if not path.endswith("/stream")}
    return made


SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = {each.ok().label: each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(redis62: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    given = settings_of(
        redis_url=redis62.url, key_prefix="t:openapi:", runs_enabled=True, data_dir=folder, max_poll_seconds=0.01
    )
    async with serving(create_app(given)) as served:
        yield served.url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


# schemathesis draws from `random` in places; what is derandomized stays so by hypothesis' own seed.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("label", sorted(OPERATIONS))
async def test_operation_answers_what_is_documented(label: str, url: str, session: requests.Session) -> None:
    operation = OPERATIONS[label]
    modes = [operation.as_strategy(GenerationMode.POSITIVE)]
    if list(operation.iter_parameters()) or operation.body:
        modes.append(operation.as_strategy(GenerationMode.NEGATIVE))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(modes))
    def examples(case: Case[Any]) -> None:
        answer = case.call(base_url=url, session=session, headers=ROOT, timeout=60)
        case.validate_response(answer, checks=CHECKS if answer.status_code == 503 else [not_a_server_error, *CHECKS])

    await asyncio.to_thread(examples)


def test_every_operation_of_the_document_can_be_read() -> None:
    assert len(OPERATIONS) == sum(len(each) for each in document()["paths"].values())
