"""A Hub on loopback: serves model and data set repositories to the real huggingface_hub and datasets clients.

    with Hub() as hub:
        sha = hub.commit("model", "owner/name", folder)
        subprocess.run(..., env={**os.environ, **hub.environment(home)})

A repository is a list of commits (files by path) and branches that point at them. HF_ENDPOINT is read when
huggingface_hub is imported, so that its clients run in a process of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

RepoType = Literal["model", "dataset"]
Files = Mapping[str, bytes]


@dataclass
class Repository:
    """One repository: its files at each commit, and the commit of each branch or tag."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    """Commit messages by sha, in order; empty for commits that the test made."""
    pull_requests: list[str] = field(default_factory=list)
    """Titles, numbered from 1; the content is that of the branch refs/pr/NUMBER."""
    gated: bool = False
    private: bool = False

    def sha(self, revision: str) -> str | None:
        """The commit that a branch, tag or sha names."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    def commit(self, files: Files, branch: str, *, parent: str = "", message: str = "") -> str:
        """Replace the branch's content with the files, and return the commit's sha."""
        digest = hashlib.sha1(f"{branch}\0{parent}\0{message}\0".encode())
        for name, content in sorted(files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages[sha] = message
        return sha


@dataclass
class Fault:
    """An injected fault for requests ('METHOD path') that match a pattern, a number of times."""

    request: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    says: str = "planted"
    """The error message in the response."""
    cut: bool = False
    """Close the connection in the middle of the request's body."""
    lose: bool = False
    """Process the request, and close the connection instead of answering."""
    slow: float = 0
    """Seconds to wait after each chunk of the body."""
    then: Callable[[], None] | None = None
    """Called before the request is processed, or when the connection is closed."""


class Hub:
    """The server; `requests` records its requests as 'METHOD path', in order.

    `accounts` may write: it maps tokens to the account's name and the token's role.
    """

    def __init__(self, accounts: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.repositories: dict[tuple[RepoType, str], Repository] = {}
        self.requests: list[str] = []
        self.accounts = dict(accounts or {})
        self.objects: dict[str, bytes] = {}
        """The content of large file storage, by SHA-256."""
        self.faults: list[Fault] = []
        self.planted: dict[str, bytes] = {}
        """Files by name that the Hub claims to be in every commit."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may close the connection
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Shut down the server, so that the Hub is unreachable."""
        self._server.shutdown()
        self._server.server_close()

    def commit(
        self, repo_type: RepoType, repo_id: str, content: Path | Files, branch: str = "main", *, gated: bool = False
    ) -> str:
        """Commit a folder's files, or files by path, and return the sha. Creates the repository if it is new."""
        files = content if isinstance(content, Mapping) else _files_of(content)
        repository = self.repositories.setdefault((repo_type, repo_id), Repository())
        repository.gated = gated
        return repository.commit(files, branch)

    def fail(self, request: str, **how: Any) -> None:
        """Inject a fault; see `Fault`."""
        self.faults.append(Fault(request, **how))

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables that point a client to this Hub, with its caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


def _files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class _Handler(BaseHTTPRequestHandler):
    """Routes requests and sends responses: bytes with a status and headers."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(address.path)}")
        self.query = parse_qs(address.query)
        self.fault = self._fault(f"{self.command} {unquote(address.path)}")
        self.body = self._read_body()
        if self.fault.cut:
            return self.close()
        if self.fault.then and not self.fault.lose:
            self.fault.then()
        if self.fault.status is not None:
            return self.refuse(self.fault.status, "Planted", self.fault.says, **self.fault.headers)
        for methods, pattern, answer in _routes():
            match = re.fullmatch(pattern, unquote(address.path))
            if match and self.command in methods:
                return answer(self, **match.groupdict())
        return self.refuse(404, "NotFound", f"no route for {self.command} {address.path}")

    def _fault(self, request: str) -> Fault:
        """The fault injected for this request, or one that does nothing."""
        for fault in self.hub.faults:
            if fault.times and re.fullmatch(fault.request, request):
                fault.times -= 1
                return fault
        return Fault(request)

    def _read_body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault.cut:
            return self.rfile.read(length // 2)
        if not self.fault.slow:
            return self.rfile.read(length)
        chunks = []
        while (remaining := length - sum(map(len, chunks))) > 0:
            chunks.append(self.rfile.read(min(1 << 16, remaining)))
            threading.Event().wait(self.fault.slow)  # not time.sleep, which the client may have patched
        return b"".join(chunks)

    def close(self) -> None:
        self.close_connection = True
        if self.fault.then:
            self.fault.then()
        self.connection.shutdown(socket.SHUT_RDWR)

    def account(self) -> tuple[str, str] | None:
        """Name and role of the request's account; None if the request has been refused."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.accounts:
            return self.refuse(401, "Unauthorized", "Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def repository(self, kind: str | None, repo_id: str) -> Repository | None:
        """The repository; None where it does not exist, or is private and the request names no account."""
        repository = self.hub.repositories.get(("dataset" if kind == "datasets" else "model", repo_id))
        return None if repository and repository.private and not self.headers.get("Authorization") else repository

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        if self.fault.lose:
            return self.close()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, Content_Type="application/json")

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        """Send an error as the Hub does: clients read X-Error-Code."""
        headers = {"X_Error_Code": code, "X_Error_Message": message, **headers}
        self.send(json.dumps({"error": message}).encode(), status, Content_Type="application/json", **headers)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _lookup(
    handler: _Handler, kind: str | None, repo_id: str, revision: str | None
) -> tuple[Repository, str, Files] | None:
    """The repository, commit and files of a request; None if it has been refused."""
    repository = handler.repository(kind, repo_id)
    if repository is None:
        return handler.refuse(404, "RepoNotFound", "Repository not found")
    sha = repository.sha(revision or "main")
    if sha is None:
        return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repository, sha, {**repository.commits[sha], **handler.hub.planted}


def _info(handler: _Handler, kind: str, repo_id: str, revision: str | None = None) -> None:
    if target := _lookup(handler, kind, repo_id, revision):
        repository, sha, files = target
        handler.send_json(
            {
                "_id": "0" * 24,
                "id": repo_id,
                "sha": sha,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "siblings": [_sibling(name, files[name], "blobs" in handler.query) for name in sorted(files)],
                **_card_data(files),
            }
        )


def _sibling(name: str, content: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    blob = {"rfilename": name, "size": len(content), "blobId": _blob_id(content)}
    large = {"size": len(content), "sha256": _etag(content), "pointerSize": 134}
    return {**blob, "lfs": large} if is_large(name, len(content)) else blob


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str, size: int) -> bool:
    """Whether the Hub puts the file in large file storage, by its size or the usual .gitattributes."""
    return size > 10 << 20 or name.endswith((".bin", ".onnx", ".pt", ".safetensors"))


def _card_data(files: Files) -> dict[str, Any]:
    front = re.match(r"---\n(.*?)\n---\n", files.get("README.md", b"").decode(), re.S)
    return {"cardData": yaml.safe_load(front[1])} if front else {}


def _tree(handler: _Handler, kind: str, repo_id: str, revision: str, folder: str) -> None:
    if target := _lookup(handler, kind, repo_id, revision):
        _, _, files = target
        within = f"{folder}/" if folder else ""
        if within and not any(name.startswith(within) for name in files):
            return handler.refuse(404, "EntryNotFound", f"no folder {folder}")
        recursive = handler.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = _entries(files, within)
        handler.send_json([entry for entry in entries if recursive or "/" not in entry["path"][len(within) :]])


def _paths_info(handler: _Handler, kind: str, repo_id: str, revision: str) -> None:
    if target := _lookup(handler, kind, repo_id, revision):
        _, _, files = target
        paths = parse_qs(handler.body.decode()).get("paths", [])
        handler.send_json([entry for entry in _entries(files, "") if entry["path"] in paths])


def _entries(files: Files, within: str) -> list[dict[str, Any]]:
    """The files and folders below a folder ('' or 'name/'), as the Hub lists them."""
    below = sorted(name for name in files if name.startswith(within))
    above = {f"{folder}/" for name in below for folder in PurePosixPath(name).parents}
    folders = sorted(folder[:-1] for folder in above if folder.startswith(within) and folder not in (within, "./"))
    return [
        *({"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in folders),
        *({"type": "file", "path": name, "size": len(files[name]), "oid": _etag(files[name])} for name in below),
    ]


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _resolve(handler: _Handler, kind: str | None, repo_id: str, revision: str, name: str) -> None:
    if target := _lookup(handler, kind, repo_id, revision):
        repository, sha, files = target
        if repository.gated:
            return handler.refuse(403, "GatedRepo", f"Access to {repo_id} is restricted")
        if name not in files:
            return handler.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        content = files[name]
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X_Repo_Commit": sha,
            "X_Linked_Etag": f'"{_etag(content)}"',
            "X_Linked_Size": str(len(content)),
            "Accept_Ranges": "bytes",
        }
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
        if byte_range is None:
            return handler.send(content, **headers)
        start, end = int(byte_range[1]), min(int(byte_range[2] or len(content)), len(content) - 1)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        handler.send(content[start : end + 1], 206, **headers)


REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"

READING: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", rf"{API}/revision/(?P<revision>.+)", _info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _tree),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("GET", API, _info),
    ("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _resolve),
]


def _routes() -> list[tuple[str, str, Callable[..., None]]]:
    from hub_writing import WRITING

    return WRITING + READING
