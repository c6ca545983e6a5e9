"""ASGI middleware in front of the page's server: passes on only the requests that the page makes, within size limits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
READ = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"),
    *(f"{API}/startup-events", f"{API}/queue/data", f"{API}/upload_progress"),
)
READ_BELOW = ("/assets/", "/static/")
"""Readable paths. Gradio serves more, including a proxy that fetches any public address for any client."""
FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
JSON_CALLS = (f"{API}/queue/join", f"{API}/cancel", f"{API}/reset")

MAX_UPLOAD = 20 * 2**20
"""Maximum size of one upload in bytes."""
MAX_JSON = 64 * 2**10
"""Maximum size of one call in bytes; images are uploaded separately, and calls refer to them."""
MAX_KEPT = 500 * 2**20
"""Maximum total size of the stored uploads in bytes."""
ABANDONED_SECONDS = 600
"""Age at which an unfinished upload counts as abandoned."""
SLACK = 4 * 2**10
"""Bytes that the multipart form may add to an uploaded file."""


class Guard:
    """ASGI middleware that rejects requests the page does not make, with 400, 403, 404, 411, 413 or 503 and a message."""

    def __init__(self, app: App, *, uploads: Path) -> None:
        """uploads: the only folder whose files a call may refer to or read back."""
        self.app = app
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # The page uses no web sockets; the server closes unanswered connections.
        path = _path(scope)
        if scope["method"] in ("GET", "HEAD"):
            if path.startswith(FILE) and not self._is_upload(path.removeprefix(FILE)):
                return await _refuse(send, 403, "Only images uploaded to this page can be read.")
            if path.startswith(FILE) or path in READ or path.startswith(READ_BELOW):
                return await self.app(scope, receive, send)
        elif scope["method"] == "POST" and path == UPLOAD:
            return await self._upload(scope, receive, send)
        elif scope["method"] == "POST" and path in JSON_CALLS:
            return await self._call(scope, receive, send)
        return await _refuse(send, 404, "Not found; this server has only the demo page.")

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an upload that declares its size, is not too large, and fits into the remaining space."""
        size = _content_length(scope)
        if size is None:
            return await _refuse(send, 411, "An upload must declare its size in a Content-Length header.")
        if size > MAX_UPLOAD + SLACK:
            return await _refuse(send, 413, f"The upload is too large; the limit is {MAX_UPLOAD // 2**20} MB.")
        _remove_abandoned(self.uploads)
        if size + _bytes_below(self.uploads) > MAX_KEPT:
            return await _refuse(send, 503, "Too many images are being processed; please try again in a few minutes.")
        # The server passes on no more bytes than Content-Length declares.
        return await self.app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a call that is small, is valid JSON, and refers to no file except uploads."""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None  # The visitor has left.
            body += message.get("body", b"")
            if len(body) > MAX_JSON:
                return await _refuse(
                    send, 413, f"The call is too large; the limit is {MAX_JSON // 2**10} kB. Upload the image first."
                )
            if not message.get("more_body", False):
                break
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return await _refuse(send, 400, "The call is not valid JSON.")
        # Gradio moves any path in a call into its own folder, and fetches it if it is an address.
        if not all(isinstance(path, str) and self._is_upload(path) for path in _values(content, "path")):
            return await _refuse(send, 403, "Only images uploaded to this page can be classified.")

        # Pass on the parsed content, since another parser might read the same bytes differently.
        checked = iter([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}])

        async def replay() -> Message:
            return next(checked, None) or await receive()

        return await self.app(scope, replay, send)

    def _is_upload(self, path: str) -> bool:
        """Return True for the absolute path of a file in the upload folder, with links and `..` resolved."""
        try:
            return os.path.isabs(path) and Path(path).resolve().is_relative_to(self.uploads) and os.path.isfile(path)
        except (OSError, ValueError, RuntimeError):  # Overlong names, null bytes or circular links.
            return False


def _path(scope: Scope) -> str:
    """Return the path as the server routes it, without the prefix of a reverse proxy."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _content_length(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if len(values) == 1 and values[0].isdigit() else None


def _values(content: Any, key: str) -> Iterator[Any]:
    """Yield every value of a key anywhere in parsed JSON."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if key in item:
                yield item[key]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _remove_abandoned(folder: Path) -> None:
    """Remove abandoned uploads: Gradio writes into the folder itself, then moves finished files to a subfolder."""
    for entry in os.scandir(folder):
        try:
            if entry.is_file(follow_symlinks=False) and time.time() - entry.stat().st_mtime > ABANDONED_SECONDS:
                os.unlink(entry)
        except FileNotFoundError:
            continue


def _bytes_below(folder: Path) -> int:
    sizes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # Removed in the meantime.
    return sizes


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
