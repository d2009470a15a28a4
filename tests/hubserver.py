"""A Hugging Face Hub on 127.0.0.1, as far as models are pushed to it and pulled from it by the real client.

It answers "regular" to preupload, so that files come inside the commit. What it can do wrong is set by `Hub.fault`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_good"
LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "other"}


class Hub:
    """What the server holds.

    Attributes:
        repos: for each repository its commits, each a dict of files by path; the last one is "main".
        private: the repositories that were made private.
        fault: what goes wrong: "commit" (the connection breaks while a commit is sent), "broken" (status 500 for it),
            "truncate" (half of the weights come), "" for nothing.
        requests: method and path of each request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.fault = ""
        self.requests: list[str] = []
        self.url = ""

    def put(self, repo: str, **files: bytes) -> None:
        """Adds a commit; names are given with "__" for a dot."""
        named = {name.replace("__", "."): content for name, content in files.items()}
        before = self.repos.setdefault(repo, [{".gitattributes": b""}])[-1]
        self.repos[repo].append(before | named)

    def oid(self, repo: str, index: int = -1) -> str:
        """A commit's name."""
        count = index % len(self.repos[repo])
        return hashlib.sha1(f"{repo} {count}".encode()).hexdigest()

    def commit(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """A commit's files."""
        commits = self.repos.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((files for i, files in enumerate(commits) if self.oid(repo, i) == revision), None)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Runs the server until the block ends; `hub.url` is its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with listening(handler) as hub.url:
        yield hub


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Runs a web server on this machine until the block ends; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def _get(self, *, body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self.hub.commit(found[1], found[2])
            if files is None:
                return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            entries = [{"type": "file", "path": k, "size": len(v), "oid": _sha(v)} for k, v in files.items()]
            return self._json(200, entries)
        if (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)) and found[1] in self.hub.repos:
            return self._json(200, {"id": found[1], "private": found[1] in self.hub.private})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3], body=body)
        return self._json(404, {"error": "not found"})

    def _file(self, repo: str, revision: str, name: str, *, body: bool) -> None:
        if repo not in self.hub.repos:
            return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        files = self.hub.commit(repo, revision)
        if files is None:
            return self._json(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        number = next(i for i, f in enumerate(self.hub.repos[repo]) if f is files)
        headers = {"X-Repo-Commit": self.hub.oid(repo, number)}
        if name not in files:
            return self._json(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        content = files[name]
        resumed = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        content = content[int(resumed) :]
        self.send_response(206 if int(resumed) else 200)
        for key, value in (headers | {"ETag": f'"{_sha(files[name])}"', "Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            half = self.hub.fault == "truncate" and name.endswith(".safetensors")
            self.wfile.write(content[: 0 if int(resumed) else len(content) // 2] if half else content)
            if half:
                self.close_connection = True
        return None

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        path = self.path.partition("?")[0]
        if path.endswith("/commit/main") and self.hub.fault == "commit":
            self.rfile.read(1000)
            self.connection.close()
            self.close_connection = True
            return None
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(content)["content"])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self._create(json.loads(content))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return self._json(200, {"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], [json.loads(line) for line in content.splitlines()])
        return self._json(404, {"error": "not found"})

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if repo in self.hub.repos:
            return self._json(409, {"error": "You already created this model repo"} | answer)
        self.hub.repos[repo] = [{".gitattributes": b""}]
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.private.add(repo)
        return self._json(200, answer)

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.fault == "broken":
            return self._json(500, {"error": "Internal error"})
        added = {v["path"]: base64.b64decode(v["content"]) for v in (l["value"] for l in lines if l["key"] == "file")}
        self.hub.repos[repo].append(self.hub.repos[repo][-1] | added)
        oid = self.hub.oid(repo)
        return self._json(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def _validate(self, text: str) -> None:
        data = yaml.safe_load(text.split("---")[1])
        wrong = [f'"license" must be one of {sorted(LICENSES)}'] if data.get("license") not in LICENSES else []
        errors = [{"message": message} for message in wrong]
        return self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
