"""What every route's answers carry, whoever asks: not cached, not sniffed, not framed, not for other origins' pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.routes import Where, all_routes
from tests.support.gateway import api
from tests.support.tokens import token

ROLES = {"nobody": None, "alice": token("alice"), "root": token("root", admin=True)}
REVALIDATED = {"/", "/docs", "/openapi.json"}
"""What is no event and the same for everybody."""


def ending() -> list[Where]:
    """Every route whose answer ends for this transport; `/stream` has its own tests."""
    found = [each for each in all_routes() if each.method != "WS" and not each.path.endswith("/stream")]
    return [*found, Where("GET", "/"), Where("GET", "/docs"), Where("GET", "/none"), Where("PATCH", "/healthz")]


ENDING = ending()


@pytest.mark.parametrize("role", ROLES)
async def test_every_answer_is_for_its_reader_alone(role: str, tmp_path: Path) -> None:
    async with api(max_poll_seconds=0.01, runs_enabled=True, data_dir=tmp_path) as it:
        for where in ENDING:
            answer = await it.call(where.method, where.at("run:none"), auth=ROLES[role], params={"stream": "run:none"})
            said = f"{role} {where.method} {where.path}: {answer.status_code} {answer.headers}"

            assert answer.status_code != 500, said
            assert answer.headers["x-content-type-options"] == "nosniff", said
            assert answer.headers["referrer-policy"] == "no-referrer", said
            assert answer.headers["cross-origin-resource-policy"] == "same-origin", said
            assert answer.headers["x-frame-options"] == "DENY", said
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy, said
            assert "frame-ancestors 'none'" in policy, said
            assert "unsafe" not in policy, said
            if where.path not in REVALIDATED and answer.status_code != 204:
                assert answer.headers["cache-control"] == "no-store", said
