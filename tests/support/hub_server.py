"""A small Hub on the loopback: what huggingface_hub's own client asks for, kept in memory, with faults on request."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_PlantedTokenThatNobodyMayEverSee"
"""The one token that may write."""
HANG_SECONDS = 6.0
STEPS = ("create", "info", "readme", "validate", "preupload", "batch", "put", "verify", "commit")
"""The requests of one push, in their order."""

Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository as the Hub keeps it: commits are whole trees, refs point to them, and a push moves one ref at once."""

    kind: str
    private: bool
    sdk: str | None = None
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, ref: str, files: Files, message: str) -> str:
        seed = f"{len(self.commits)}{sorted((n, hashlib.sha256(c).hexdigest()) for n, c in files.items())}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha], self.refs[ref] = files, sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def head(self, ref: str = "main") -> Files:
        return self.commits[self.refs[ref]]


class Hub(ThreadingHTTPServer):
    """Repositories by type and id, as `models/USER/NAME`; a fault for a step of a repository; everything that was asked."""

    daemon_threads = True
    request_queue_size = 128
    """Connections that may wait; of a hundred clients at once most found the five places of a plain server taken."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], int | str] = {}
        """(USER/NAME, step) to a status, "cut" or "hang"; with "once " before it, the first time only."""
        self.asked: Counter[tuple[str, str]] = Counter()
        """How often each step of each repository was asked for."""
        self.cas: Path | None = None
        """Where the client's chunk storage (Xet) is, once a test has made one; without it large files go up whole."""
        self.chunked: dict[str, tuple[str, bytes]] = {}
        """By SHA-256 the Xet hash and the content of files that a test expects there; only the storage serves these."""
        self.limits = {"regular_bytes": 10_000}
        super().__init__(("127.0.0.1", 0), Requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Each connection that is cut short would print a traceback."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, repo_id: str, kind: str = "models", **facts: Any) -> Repository:
        repository = Repository(kind, **({"private": False} | facts))
        repository.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.repositories[f"{kind}/{repo_id}"] = repository
        return repository

    def model(self, repo_id: str) -> Repository:
        return self.repositories[f"models/{repo_id}"]


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Fault(Exception):
    """The answer is this status, or no answer at all."""


class Requests(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        self.body = self._read_body()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for verb, pattern, step, action in ROUTES:
            if verb == ("GET" if method == "HEAD" else method) and (match := re.fullmatch(pattern, unquote(url.path))):
                if not self._fault(step, match.groupdict()):
                    action(self, **match.groupdict())
                return
        self._json(404, {"error": f"no route for {method} {self.path}"})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fault(self, step: str, named: dict[str, str]) -> bool:
        """Do to this request what was asked for; whether that was anything."""
        repo_id = named.get("repo") or self._repo_in_body(step)
        if step == "resolve" and named["path"] == "README.md":
            step = "readme"
        self.server.asked[repo_id, step] += 1
        fault = self.server.faults.get((repo_id, step))
        if isinstance(fault, str) and fault.startswith("once "):
            del self.server.faults[repo_id, step]
            fault = fault.removeprefix("once ")
        if fault is None:
            return False
        if fault == "hang":
            time.sleep(HANG_SECONDS)
        if fault in ("cut", "hang"):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self._json(int(fault), {"error": "asked for by the test"}, {"Retry-After": "0"})
        return True

    def _repo_in_body(self, step: str) -> str:
        if step == "create":
            asked = json.loads(self.body)
            return f"{asked['organization']}/{asked['name']}"
        if step == "validate":
            found = re.search(r"hf-hub:([\w-]+/[\w.-]+)", json.loads(self.body)["content"])
            return found[1] if found else ""
        return ""

    # Answers

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._json(401, {"error": "Invalid credentials in Authorization header"})
        return False

    def _repository(self, kind: str, repo: str) -> Repository | None:
        found = self.server.repositories.get(f"{kind}/{repo}")
        hidden = found is not None and found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if found is None or hidden:
            self._json(401 if hidden else 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str | None:
        if (sha := repository.find(revision)) is None:
            self._json(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return sha

    # Actions, each for a route

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id, kind = f"{asked['organization']}/{asked['name']}", f"{asked.get('type', 'model')}s"
        if not self._may_write():
            return
        url = f"{self.server.url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
        if f"{kind}/{repo_id}" in self.server.repositories:
            self._json(409, {"error": "You already created this repo", "url": url})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.create(repo_id, kind, private=bool(private), sdk=asked.get("sdk"))
        self._json(200, {"url": url, "name": repo_id})

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        if (repository := self._repository(kind, repo)) and (sha := self._commit_of(repository, revision)):
            files, sizes = repository.commits[sha], "blobs" in self.query
            siblings = [{"rfilename": n} | ({"size": len(files[n])} if sizes else {}) for n in sorted(files)]
            facts = {"id": repo, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings}
            self._json(200, facts | ({"sdk": repository.sdk} if kind == "spaces" else {}))

    def tree(self, kind: str, repo: str, revision: str) -> None:
        if (repository := self._repository(kind, repo)) and (sha := self._commit_of(repository, revision)):
            entries = []
            for name, content in sorted(repository.commits[sha].items()):
                entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
                if self._is_large(name, len(content)):
                    oid = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
                entries.append(entry)
            self._json(200, entries)

    def branch(self, kind: str, repo: str, revision: str) -> None:
        if self._may_write() and (repository := self._repository(kind, repo)):
            if revision in repository.refs:
                self._json(409, {"error": "Reference already exists"})
                return
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repository.refs[revision] = repository.refs[start]
            self._json(200, {})

    def validate(self) -> None:
        content = json.loads(self.body)["content"].replace("\r\n", "\n")
        front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(front[1]) if front else {}
            wrong = [] if isinstance(data, dict) else ["the metadata is no mapping"]
        except yaml.YAMLError as error:
            wrong = [str(error)]
        answer: dict[str, Any] = {"errors": [{"message": text} for text in wrong], "warnings": []}
        self._json(400 if wrong else 200, answer)

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        if not self._may_write() or not (repository := self._repository(kind, repo)):
            return
        if not (sha := self._commit_of(repository, revision)):
            return
        tree, files = repository.commits[sha], []
        for asked in json.loads(self.body)["files"]:
            name, large = asked["path"], self._is_large(asked["path"], asked["size"])
            file: dict[str, Any] = {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if name in tree:
                file["oid"] = hashlib.sha256(tree[name]).hexdigest() if large else git_oid(tree[name])
            files.append(file)
        self._json(200, {"files": files})

    def batch(self, kind: str | None, repo: str) -> None:
        if not self._may_write():
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.large:
                url = f"{self.server.url}/storage/{repo}/{asked['oid']}"
                answer["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            objects.append(answer)
        self._json(200, {"transfer": "basic", "objects": objects})

    def put(self, repo: str, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._json(400, {"error": "the content is not what its name says"})
            return
        self.server.large[oid] = self.body
        self._json(200, {})

    def verify(self, repo: str, oid: str) -> None:
        self._json(200 if oid in self.server.large else 404, {})

    def storage(self, repo: str, oid: str) -> None:
        self._bytes(200, self.server.large[oid], {})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        if not self._may_write() or not (repository := self._repository(kind, repo)):
            return
        if not (parent := self._commit_of(repository, revision)):
            return
        header, *changes = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit", parent) != parent:
            self._json(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(repository.commits[parent])
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile" and value["oid"] in self.server.chunked:
                files[value["path"]] = self.server.chunked[value["oid"]][1]
            elif change["key"] == "lfsFile" and value["oid"] not in self.server.large:
                self._json(400, {"error": f"{value['path']} was not uploaded"})
                return
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif change["key"] == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        ref = f"refs/pr/{number}" if "create_pr" in self.query else revision
        sha = repository.add(ref, files, header["value"]["summary"])
        url = f"{self.server.url}/{repo}"
        pull_request = f"{url}/discussions/{number}" if "create_pr" in self.query else None
        self._json(200, {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pull_request})

    def resolve(self, repo: str, revision: str, path: str, kind: str | None = None) -> None:
        if not (repository := self._repository(kind or "models", repo)):
            return
        if not (sha := self._commit_of(repository, revision)):
            return
        if (content := repository.commits[sha].get(path)) is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        large = self._is_large(path, len(content))
        oid = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid if large else git_oid(content)}"'}
        if large:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        if oid in self.server.chunked:
            route = f"{self.server.url}/api/models/{repo}/xet-read-token/{revision}"
            headers |= {"X-Xet-Hash": self.server.chunked[oid][0], "X-Xet-Refresh-Route": route}
            if self.command == "GET":
                self._json(410, {"error": "only the storage has this"}, headers)
                return
        self._bytes(200, content, headers)

    def xet(self, kind: str, repo: str, way: str, revision: str) -> None:
        if way == "write" and not self._may_write():
            return
        # The client's storage library keeps chunks in a folder where the address of the storage says so.
        url, expires = f"local://{self.server.cas}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "chunks", "X-Xet-Token-Expiration": str(expires)}
        self._json(200, {"casUrl": url, "accessToken": "chunks", "exp": expires}, headers)

    def _is_large(self, name: str, size: int) -> bool:
        return name.endswith(".safetensors") or size > self.server.limits["regular_bytes"]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_KIND, _REPO, _REV = r"(?P<kind>models|spaces)", r"(?P<repo>[\w-]+/[\w.-]+)", r"(?P<revision>.+)"
_TYPE = r"/(?:(?P<kind>spaces)/)?"
ROUTES: list[tuple[str, str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", "create", Requests.create),
    ("POST", r"/api/validate-yaml", "validate", Requests.validate),
    ("POST", rf"/api/{_KIND}/{_REPO}/branch/{_REV}", "branch", Requests.branch),
    ("POST", rf"/api/{_KIND}/{_REPO}/preupload/{_REV}", "preupload", Requests.preupload),
    ("POST", rf"/api/{_KIND}/{_REPO}/commit/{_REV}", "commit", Requests.commit),
    ("GET", rf"/api/{_KIND}/{_REPO}/xet-(?P<way>read|write)-token/{_REV}", "xet", Requests.xet),
    ("GET", rf"/api/{_KIND}/{_REPO}/revision/{_REV}", "info", Requests.info),
    ("GET", rf"/api/{_KIND}/{_REPO}/tree/{_REV}", "tree", Requests.tree),
    ("GET", rf"/api/{_KIND}/{_REPO}", "info", Requests.info),
    ("POST", rf"{_TYPE}{_REPO}\.git/info/lfs/objects/batch", "batch", Requests.batch),
    ("PUT", rf"/storage/{_REPO}/(?P<oid>[0-9a-f]{{64}})", "put", Requests.put),
    ("POST", rf"/storage/{_REPO}/(?P<oid>[0-9a-f]{{64}})/verify", "verify", Requests.verify),
    ("GET", rf"/storage/{_REPO}/(?P<oid>[0-9a-f]{{64}})", "storage", Requests.storage),
    ("GET", rf"{_TYPE}{_REPO}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", "resolve", Requests.resolve),
]


def main() -> None:
    """Serve until interrupted, to try publishing without the Hub, and print what to set for it."""
    with serving() as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
