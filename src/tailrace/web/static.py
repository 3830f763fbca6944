"""Files of our own pages: the live page at `/`, the API's documentation at `/docs`. No network, strict CSP."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["StaticFolder"]

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}


class StaticFolder:
    """The files of one folder, read when they change; nothing outside of it can be named."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[int, bytes, str]] = {}

    async def answer(self, request: Request, name: str) -> Response | None:
        """The file `name`, 304 when the client has it, or None when there is none."""
        found = await asyncio.to_thread(self._find, name or "index.html")
        if found is None:
            return None
        content, etag = found
        headers = {"ETag": etag, "Cache-Control": "no-cache", "Content-Security-Policy": CSP}
        if etag in [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        suffix = Path(name or "index.html").suffix
        media = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
        return Response(content if request.method != "HEAD" else b"", media_type=media, headers=headers)

    def _find(self, name: str) -> tuple[bytes, str] | None:
        if not all(part and part[0] not in "._" for part in name.split("/")) or not name.isprintable() or "\\" in name:
            return None
        path = self._folder / name
        try:
            stamp = path.stat().st_mtime_ns
            known = self._read.get(name)
            if known is None or known[0] != stamp:
                content = path.read_bytes()
                known = self._read[name] = (stamp, content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        except (OSError, ValueError):
            return None
        return known[1], known[2]
