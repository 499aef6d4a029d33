"""A hub for tests: it answers what huggingface_hub's own client requests over HTTP, with the faults of a real one.

Weights are redirected to another path, as the hub does for large files; other files are served directly.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from helpers import files_of

KEPT_APART = (".safetensors", ".bin", ".png")
TOKEN = "hf_right"  # noqa: S105  of no one


def commit_of(files: dict[str, bytes]) -> str:
    """Return the id of a commit that holds these files."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def hashes_of(content: bytes) -> tuple[str, str]:
    """Return git's blob id of a file, and its SHA-256."""
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    return git, hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    """A model: its commits, the commits of its branches and tags, and what is wrong with it."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str]
    is_private: bool = False
    is_gated: bool = False


@dataclass
class FakeHub:
    """A running hub at `endpoint`.

    `requests` counts requests and `sent` the bytes of files that were sent. Each request for the bytes of a file takes
    one of the `faults`: a status to answer with, "cut" to close the connection after half of the bytes, "wrong" to
    alter a byte, "whole" to ignore the range, "endless" to send bytes until the client closes the connection.
    """

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    faults: list[int | str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, repo: str, folder: Path, revision: str = "main", is_private: bool = False, is_gated: bool = False
    ) -> str:
        """Put a folder on the hub, as the head of `revision`; return the commit."""
        files = files_of(folder)
        commit = commit_of(files)
        found = self.repos.setdefault(repo, Repo({}, {}, is_private, is_gated))
        found.commits[commit] = files
        found.revisions[revision] = commit
        return commit

    def next_fault(self) -> int | str | None:
        """Remove and return the next fault."""
        with self.lock:
            return self.faults.pop(0) if self.faults else None


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def let_client_use(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub's client take `hub` for the real one, with this folder for what it caches."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a separate protocol that this hub does not implement


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each small answer waits 40 ms for the client to acknowledge its headers

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name in the base class
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:  # noqa: C901  a table of routes
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        match self.command, parts:
            case _, ["api", "models", org, name, *rest] if not rest or rest[0] == "revision":
                self._info(f"{org}/{name}", rest[1] if rest else "main", "blobs" in parse_qs(url.query))
            case "GET", ["api", "models", org, name, "tree", revision, *_]:
                self._tree(f"{org}/{name}", revision)
            case _, ["blobs", digest]:
                self._bytes(self._blob(digest), {})
            case "GET" | "HEAD", [org, name, "resolve", revision, *file]:
                self._resolve(f"{org}/{name}", revision, "/".join(file))
            case "POST", ["api", "repos", "create"]:
                self._create(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case "POST", ["api", "models", org, name, "preupload", *_]:
                files = json.loads(body)["files"]
                modes = [("lfs" if file["path"].endswith(KEPT_APART) else "regular") for file in files]
                self._json(
                    {
                        "files": [
                            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                            for file, mode in zip(files, modes, strict=True)
                        ]
                    }
                )
            case "POST", [org, _, "info", "lfs", "objects", "batch"]:
                self._json({"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]})
            case "PUT", ["upload", digest]:
                self.hub.uploads[digest] = body
                self._json({})
            case "POST", ["api", "models", org, name, "commit", revision]:
                self._commit(f"{org}/{name}", revision, [json.loads(line) for line in body.splitlines()])
            case _:
                self._json({"error": f"no such route: {self.command} {self.path}"}, 404)

    def _upload(self, blob: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.endpoint}/upload/{blob['oid']}"
        return {"oid": blob["oid"], "size": blob["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> None:
        import base64

        found = self.hub.repos[repo]
        files = dict(found.commits.get(found.revisions.get(revision, ""), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = commit_of(files)
        found.commits[commit], found.revisions[revision] = files, commit
        self._json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}", "commitOid": commit, "success": True})

    def _create(self, document: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
            return
        repo = "/".join(filter(None, (document.get("organization"), document["name"])))
        empty = commit_of({})
        self.hub.repos.setdefault(repo, Repo({empty: {}}, {"main": empty}))
        self._json({"url": f"{self.hub.endpoint}/{repo}"})

    def _repo(self, repo: str) -> Repo | None:
        """Return a model if the client may see it; otherwise answer as the hub does."""
        found = self.hub.repos.get(repo)
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.is_private and not is_known):
            self._json({"error": "Repository not found"}, 404 if is_known else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if found.is_gated and not is_known:
            self._json({"error": "Access to model is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            return None
        return found

    def _commit_named(self, repo: Repo, revision: str) -> str | None:
        commit = repo.revisions.get(revision, revision)
        if commit not in repo.commits:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _info(self, repo: str, revision: str, with_blobs: bool) -> None:
        self.hub.requests["info"] += 1
        found = self._repo(repo)
        commit = self._commit_named(found, revision) if found else None
        if found is None or commit is None:
            return
        siblings: list[dict[str, Any]] = []
        for name, content in found.commits[commit].items():
            git, digest = hashes_of(content)
            sibling: dict[str, Any] = {"rfilename": name}
            if with_blobs:
                sibling |= {"size": len(content), "blobId": git}
                if name.endswith(KEPT_APART):
                    sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _tree(self, repo: str, revision: str) -> None:
        found = self._repo(repo)
        commit = self._commit_named(found, revision) if found else None
        entries: list[dict[str, Any]] = []
        for name, content in found.commits[commit].items() if found and commit else ():
            git, digest = hashes_of(content)
            entry: dict[str, Any] = {"type": "file", "oid": git, "size": len(content), "path": name}
            if name.endswith(KEPT_APART):
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        if found and commit:
            self._json(entries)

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        found = self._repo(repo)
        commit = self._commit_named(found, revision) if found else None
        if found is None or commit is None:
            return
        content = found.commits[commit].get(file)
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'}
        if file.endswith(KEPT_APART):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")  # another host to the client
            self._send(b"", 302, headers | {"Location": f"{elsewhere}/blobs/{digest}"})
            return
        self.hub.requests[file] += 1
        self._bytes(content, headers)

    def _blob(self, digest: str) -> bytes:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for name, content in files.items():
                    if hashlib.sha256(content).hexdigest() == digest:
                        self.hub.requests[name] += 1
                        return content
        raise AssertionError(digest)

    def _bytes(self, content: bytes, headers: dict[str, str]) -> None:
        fault = None if self.command == "HEAD" else self.hub.next_fault()
        if isinstance(fault, int):
            self._json({"error": f"fault {fault}"}, fault, {"Retry-After": "0"})
            return
        wanted, status = self.headers.get("Range"), 200
        headers = {**headers, "Accept-Ranges": "bytes"}
        if wanted and fault != "whole":
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            total, first, last = len(content), int(begin), int(end or len(content) - 1)
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        if fault == "wrong":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "cut":
            self._send(content[: len(content) // 2], status, headers, len(content))
            self.close_connection = True
            return
        if fault == "endless":
            self._send_without_end(content, status, headers)
            return
        self._send(content, status, headers)

    def _send_without_end(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self._send(content, status, headers, 1 << 62)
        with suppress(OSError):  # the client has closed the connection
            while True:
                self.wfile.write(bytes(1 << 16))
        self.close_connection = True

    def _json(self, document: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(document).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, body: bytes, status: int, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            if status in (200, 206):
                with self.hub.lock:
                    self.hub.sent += len(body)
            self.wfile.write(body)
