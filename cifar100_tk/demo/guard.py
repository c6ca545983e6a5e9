"""What stands before the page's server: it lets through what the page itself asks for, within bounds, and nothing else."""

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
"""What may be read. Gradio serves more, among it a proxy that fetches any public address for whoever asks."""
FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
JSON_CALLS = (f"{API}/queue/join", f"{API}/cancel", f"{API}/reset")

MAX_UPLOAD = 20 * 2**20
"""Bytes of one upload."""
MAX_JSON = 64 * 2**10
"""Bytes of one call; images travel as uploads, and a call only names them."""
MAX_KEPT = 500 * 2**20
"""Bytes of all uploads that are kept at a time."""
ABANDONED_SECONDS = 600
"""Age at which an upload that has not been finished is taken for abandoned."""
SLACK = 4 * 2**10
"""Bytes that the form around an uploaded file may add to it."""


class Guard:
    """ASGI middleware that answers 403, 404, 411, 413 or 503 with a sentence where a request is none of the page's."""

    def __init__(self, app: App, *, uploads: Path) -> None:
        """uploads: the only folder whose files may be named in a call or read back."""
        self.app = app
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # The page needs no web socket; the server closes what is not answered.
        path = _path(scope)
        if scope["method"] in ("GET", "HEAD"):
            if path.startswith(FILE) and not self._is_upload(path.removeprefix(FILE)):
                return await _refuse(send, 403, "Only images of this page can be read here.")
            if path.startswith(FILE) or path in READ or path.startswith(READ_BELOW):
                return await self.app(scope, receive, send)
        elif scope["method"] == "POST" and path == UPLOAD:
            return await self._upload(scope, receive, send)
        elif scope["method"] == "POST" and path in JSON_CALLS:
            return await self._call(scope, receive, send)
        return await _refuse(send, 404, "There is nothing here but the page.")

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an upload through that says its size and is not too large, while there is room."""
        size = _content_length(scope)
        if size is None:
            return await _refuse(send, 411, "An upload has to say how many bytes it has.")
        if size > MAX_UPLOAD + SLACK:
            return await _refuse(send, 413, f"An image may have {MAX_UPLOAD // 2**20} MB; this upload is larger.")
        _remove_abandoned(self.uploads)
        if size + _bytes_below(self.uploads) > MAX_KEPT:
            return await _refuse(send, 503, "Too many images are being looked at; please try again in a few minutes.")
        # The server hands on no more bytes than Content-Length says.
        return await self.app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through that is small, is JSON, and names no file but an upload."""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None  # The visitor has left.
            body += message.get("body", b"")
            if len(body) > MAX_JSON:
                return await _refuse(send, 413, f"A call may have {MAX_JSON // 2**10} kB; upload the image first.")
            if not message.get("more_body", False):
                break
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return await _refuse(send, 400, "This call is not JSON.")
        # Gradio moves whatever a call names as a path into its own folder, and where it is an address fetches it.
        if not all(isinstance(path, str) and self._is_upload(path) for path in _values(content, "path")):
            return await _refuse(send, 403, "Only an image that was uploaded to this page can be looked at.")

        # What was checked is what is handed on, whatever another parser might have read in the same bytes.
        checked = iter([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}])

        async def replay() -> Message:
            return next(checked, None) or await receive()

        return await self.app(scope, replay, send)

    def _is_upload(self, path: str) -> bool:
        """Whether this is the absolute path of a file in the folder of uploads, links and dots followed."""
        try:
            return os.path.isabs(path) and Path(path).resolve().is_relative_to(self.uploads) and os.path.isfile(path)
        except (OSError, ValueError, RuntimeError):  # Names too long, with a null byte, or links in a circle.
            return False


def _path(scope: Scope) -> str:
    """Return the path as the server routes it, less what a proxy in front of it has put before it."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _content_length(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if len(values) == 1 and values[0].isdigit() else None


def _values(content: Any, key: str) -> Iterator[Any]:
    """Everything that stands under a key anywhere in parsed JSON."""
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
    """Remove what is left of uploads whose visitor went away: Gradio writes into the folder itself, then moves below it."""
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
