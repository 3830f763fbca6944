"""The names of keys: a public contract (PROTOCOL.md §9.1)."""

from __future__ import annotations

import pytest

from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError
from tailrace.eventlog.redis.keys import LEGACY_TEMPLATES, Keys

RUN = StreamName.parse("run:42")


def keys_with(template: str, *, cluster: bool = False) -> Keys:
    return Keys(Kinds([StreamKind(name="run", key_template=template)]), cluster=cluster)


def test_the_default_keys_share_a_hash_tag() -> None:
    keys = Keys(Kinds()).of(RUN)

    assert keys == (
        b"tailrace:run:{42}:events",
        b"tailrace:run:{42}:meta",
        b"tailrace:run:{42}:uids",
        b"tailrace:run:{42}:push",
    )


def test_the_prefix_may_be_empty() -> None:
    assert Keys(Kinds(), prefix="").of(RUN).events == b"run:{42}:events"


@pytest.mark.parametrize(
    ("template", "events", "meta"),
    [
        ("run:{name}:events", b"run:42:events", b"run:42:meta"),
        ("stream:conversation:{name}", b"stream:conversation:42", b"stream:conversation:42:meta"),
        ("{prefix}x:{kind}:{name}", b"tailrace:x:run:42", b"tailrace:x:run:42:meta"),
    ],
)
def test_a_kind_may_have_a_template(template: str, events: bytes, meta: bytes) -> None:
    keys = keys_with(template).of(RUN)

    assert (keys.events, keys.meta) == (events, meta)


@pytest.mark.parametrize(
    "template", ["run:events", "{name", "{name}:{other}", "{0}", "{name}:meta", "{name}:push", "{name} x"]
)
def test_a_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(ConfigError):
        keys_with(template).of(RUN)


@pytest.mark.parametrize("template", LEGACY_TEMPLATES.values())
def test_on_cluster_a_template_needs_a_hash_tag(template: str) -> None:
    assert keys_with(template).of(RUN)
    with pytest.raises(ConfigError):
        keys_with(template, cluster=True).of(RUN)
    assert keys_with("{prefix}r:{{{name}}}", cluster=True).of(RUN).events == b"tailrace:r:{42}"


@pytest.mark.parametrize("prefix", ["a b", "a{b}", "a*", "a\nb", "x" * 65, "é"])
def test_a_prefix_that_cannot_work_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError):
        Keys(Kinds(), prefix=prefix)
