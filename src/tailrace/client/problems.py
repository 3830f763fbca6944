"""From an HTTP answer that refuses to the exception that says so: the `code` decides, never the text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from tailrace import errors
from tailrace.errors import LogUnavailable, RequestError, TailraceError

__all__ = ["error_of", "is_elsewhere", "retry_after_of"]

_STANDARD = frozenset({"type", "title", "status", "detail", "instance", "code", "retry_after"})
_WITH_RETRY_AFTER = (errors.RateLimited, errors.LogUnavailable, errors.OutcomeUnknown, errors.DatabaseUnavailable)


def _by_code() -> dict[str, type[TailraceError]]:
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, TailraceError)]
    return {each.code: each for each in classes if not issubclass(each, errors.UsageError)}


_CLASSES = _by_code()
_BY_STATUS: dict[int, type[TailraceError]] = {
    400: errors.Malformed,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    429: errors.RateLimited,
    502: LogUnavailable,
    503: LogUnavailable,
    504: LogUnavailable,
}


_NO_GATEWAY = frozenset({300, 301, 302, 303, 307, 308, 404, 405, 410, 421, 500, 501})
"""What proxies answer while they know no gateway, or have a fault of their own. Other refusals may be of what was sent,
by a proxy too."""


def is_elsewhere(error: TailraceError) -> bool:
    """Whether the answer was no gateway's: it says nothing of the request, which may succeed when one is there."""
    return error.data.get("elsewhere") is True


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> TailraceError:
    """The exception for an answer with an error status (PROTOCOL.md §8).

    The problem's own members are in `data`, with `status`; when its code is one this version does not know, `code`; and
    `elsewhere` where no gateway answered.
    """
    problem = _problem(body)
    code = problem.get("code")
    cls = _CLASSES.get(code) if isinstance(code, str) else None
    data: dict[str, Any] = {name: value for name, value in problem.items() if name not in _STANDARD}
    data["status"] = status
    if cls is None:
        cls = _BY_STATUS.get(status) or (RequestError if 400 <= status < 500 else TailraceError)
        if code is not None:
            data["code"] = code
        elif status in _NO_GATEWAY:
            data["elsewhere"] = True
        elif status > 500:
            cls = LogUnavailable  # 520-530: as 502
    detail = problem.get("detail") or problem.get("title") or _unexplained(status)
    if issubclass(cls, _WITH_RETRY_AFTER):
        return cls(str(detail), retry_after=retry_after_of(headers, problem), **data)
    return cls(str(detail), **data)


def retry_after_of(headers: Mapping[str, str], problem: Mapping[str, Any]) -> float:
    """How many seconds the server asks to wait; 1 when it does not say."""
    for value in (problem.get("retry_after"), headers.get("retry-after")):
        try:
            seconds = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if 0 <= seconds <= 3_600:
            return seconds
    return 1.0


def _unexplained(status: int) -> str:
    if status > 501:
        return f"the server answered {status}: a proxy that does not reach the gateway?"
    return f"the server answered {status}, not as tailrace does: is this the address of a gateway?"


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}
