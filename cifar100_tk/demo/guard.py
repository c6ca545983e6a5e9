"""ASGI middleware that passes on only the requests of the page, within limits that Gradio's own settings do not have."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
READ = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"),
    *(f"{API}/startup-events", f"{API}/queue/data", f"{API}/upload_progress"),
)
READ_BELOW = ("/assets/", "/static/")
"""Readable paths. Gradio serves more, including a proxy that fetches any public address for any client."""
FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
CALL = f"{API}/queue/join"

MAX_UPLOAD = 20 * 2**20
"""Maximum size of one upload in bytes; Gradio's `max_file_size` holds for each file, and an upload may have many."""
MAX_CALL = 64 * 2**10
"""Maximum size of one call in bytes; images are uploaded separately, and calls refer to them."""
MAX_KEPT = 500 * 2**20
"""Maximum total size of the stored uploads in bytes; Gradio has no limit."""
ABANDONED_SECONDS = 600
"""Age at which an unfinished upload counts as abandoned; Gradio deletes only finished ones."""


class Guard:
    """ASGI middleware that rejects requests the page does not make, with 400, 403, 404, 411, 413 or 503 and a message."""

    def __init__(self, app: ASGIApp, *, uploads: Path, max_kept: int = MAX_KEPT) -> None:
        """uploads: the only folder whose files a call may refer to. max_kept: the bytes it may hold."""
        self.app, self.max_kept = app, max_kept
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                receive = await self._checked(Request(scope, receive))
            except HTTPException as refused:
                return await JSONResponse({"detail": refused.detail}, refused.status_code)(scope, receive, send)
            except ClientDisconnect:
                return None
        return await self.app(scope, receive, send)

    async def _checked(self, request: Request) -> Receive:
        """Return the channel that the page's server may read the request from. Raises HTTPException to refuse it."""
        path, root = str(request.scope["path"]), str(request.scope.get("root_path", "")).rstrip("/")
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)  # As the server routes it behind a reverse proxy.
        if request.method in ("GET", "HEAD"):
            # Gradio itself serves only files of its own folder; it fetches addresses, which are not absolute paths.
            is_file = path.startswith(FILE) and os.path.isabs(path.removeprefix(FILE))
            if is_file or path in READ or path.startswith(READ_BELOW):
                return request.receive
        elif request.method == "POST" and path == UPLOAD:
            self._check_upload(request)
            return request.receive
        elif request.method == "POST" and path == CALL:
            return await self._checked_call(request)
        raise HTTPException(404, "Not found; this server has only the demo page.")

    def _check_upload(self, request: Request) -> None:
        """Refuse an upload that does not declare its size, is too large, or does not fit into the remaining space."""
        # The server passes on no more bytes than Content-Length declares, and refuses two of them.
        size = request.headers.get("content-length", "")
        if not size.isdecimal():
            raise HTTPException(411, "An upload must declare its size in a Content-Length header.")
        if int(size) > MAX_UPLOAD:
            raise HTTPException(413, f"The upload is too large; the limit is {MAX_UPLOAD // 2**20} MB.")
        if int(size) + _bytes_kept(self.uploads) > self.max_kept:
            raise HTTPException(503, "Too many images are being processed; please try again in a few minutes.")

    async def _checked_call(self, request: Request) -> Receive:
        """Return a call's content if it is small, is valid JSON, and refers to no file except uploads."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_CALL:
                raise HTTPException(
                    413, f"The call is too large; the limit is {MAX_CALL // 2**10} kB. Upload the image first."
                )
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "The call is not valid JSON.") from error
        # Gradio fetches any path in a call that is an address, and checks only those that it knows to be files.
        if not all(isinstance(path, str) and self._is_upload(path) for path in _values(content, "path")):
            raise HTTPException(403, "Only images uploaded to this page can be classified.")
        # Pass on the parsed content, since another parser might read the same bytes differently.
        checked = iter([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}])

        async def replay() -> Message:
            return next(checked, None) or await request.receive()

        return replay

    def _is_upload(self, path: str) -> bool:
        """Return True for the absolute path of a file in the upload folder, with links and `..` resolved."""
        try:
            return os.path.isabs(path) and Path(path).resolve().is_relative_to(self.uploads) and os.path.isfile(path)
        except (OSError, ValueError, RuntimeError):  # Overlong names, null bytes or circular links.
            return False


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


def _bytes_kept(folder: Path) -> int:
    """Return the size of the uploads in bytes, after removing abandoned ones.

    Gradio writes into the folder itself, then moves finished files to a subfolder.
    """
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Removed in the meantime.
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                if path.parent == folder and time.time() - found.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
                else:
                    size += found.st_size
    return size
