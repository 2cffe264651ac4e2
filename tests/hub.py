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
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

RepoType = Literal["model", "dataset"]
Files = Mapping[str, bytes]


@dataclass
class Repository:
    """One repository: its files at each commit, and the commit of each branch or tag."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def sha(self, revision: str) -> str | None:
        """The commit that a branch, tag or sha names."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    def commit(self, files: Files, branch: str) -> str:
        """Put the files on the branch, as its whole content."""
        digest = hashlib.sha1(branch.encode())
        for name, content in sorted(files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha


class Hub:
    """The server; `requests` is what it has been asked, as 'METHOD path', in order."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[RepoType, str], Repository] = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Go off the network, as a Hub does that cannot be reached."""
        self._server.shutdown()
        self._server.server_close()

    def commit(
        self, repo_type: RepoType, repo_id: str, content: Path | Files, branch: str = "main", *, gated: bool = False
    ) -> str:
        """Make a commit of a folder's files, or of files by path, and return its sha. The repository is made if new."""
        files = content if isinstance(content, Mapping) else _files_of(content)
        repository = self.repositories.setdefault((repo_type, repo_id), Repository())
        repository.gated = gated
        return repository.commit(files, branch)

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that lead a client to this Hub, with its caches under `home`."""
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
    """Finds the route of a request and answers it; an answer is bytes with a status and headers."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(address.path)}")
        self.query = parse_qs(address.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for methods, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, unquote(address.path))
            if found and self.command in methods:
                return answer(self, **found.groupdict())
        return self.refuse(404, "NotFound", f"no route for {self.command} {address.path}")

    def repository(self, kind: str | None, repo_id: str) -> Repository | None:
        return self.hub.repositories.get(("dataset" if kind == "datasets" else "model", repo_id))

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        """An error as the Hub makes them: the client goes by X-Error-Code."""
        self.send(
            json.dumps({"error": message}).encode(), status, X_Error_Code=code, X_Error_Message=message, **headers
        )

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _found(
    handler: _Handler, kind: str | None, repo_id: str, revision: str | None
) -> tuple[Repository, str, Files] | None:
    """The repository, commit and files that a request speaks of; None once it has been refused."""
    repository = handler.repository(kind, repo_id)
    if repository is None:
        return handler.refuse(404, "RepoNotFound", "Repository not found")
    sha = repository.sha(revision or "main")
    if sha is None:
        return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repository, sha, repository.commits[sha]


def _info(handler: _Handler, kind: str, repo_id: str, revision: str | None = None) -> None:
    if found := _found(handler, kind, repo_id, revision):
        repository, sha, files = found
        handler.send_json(
            {
                "_id": "0" * 24,
                "id": repo_id,
                "sha": sha,
                "private": False,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": name} for name in sorted(files)],
            }
        )


def _tree(handler: _Handler, kind: str, repo_id: str, revision: str, folder: str) -> None:
    if found := _found(handler, kind, repo_id, revision):
        _, _, files = found
        within = f"{folder}/" if folder else ""
        if within and not any(name.startswith(within) for name in files):
            return handler.refuse(404, "EntryNotFound", f"no folder {folder}")
        recursive = handler.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = _entries(files, within)
        handler.send_json([entry for entry in entries if recursive or "/" not in entry["path"][len(within) :]])


def _paths_info(handler: _Handler, kind: str, repo_id: str, revision: str) -> None:
    if found := _found(handler, kind, repo_id, revision):
        _, _, files = found
        wanted = parse_qs(handler.body.decode()).get("paths", [])
        handler.send_json([entry for entry in _entries(files, "") if entry["path"] in wanted])


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
    if found := _found(handler, kind, repo_id, revision):
        repository, sha, files = found
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
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
        if part is None:
            return handler.send(content, **headers)
        start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        handler.send(content[start : end + 1], 206, **headers)


_REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"

ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", rf"{_API}/revision/(?P<revision>.+)", _info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("GET", _API, _info),
    ("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _resolve),
]
"""Methods, path, answer: the first that fits."""
