"""Write requests of the Hub on loopback: accounts, repositories, uploads, commits, branches, tags, pull requests.

The protocol is that of huggingface_hub's own client. Large files go through git's LFS batch protocol; no Xet is
offered. See https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import yaml
from hub import API, REPO, Repository, is_large

from qabuild.system.card_metadata import LICENSES

ATTRIBUTES = {".gitattributes": b"*.onnx filter=lfs diff=lfs merge=lfs -text\n"}
LARGEST = 1 << 30
DATASET = re.compile(r"(?:[\w-]+\/)?[\w.-]+", re.ASCII)  # as the Hub's check states it
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _whoami(handler: Any) -> None:
    if account := handler.account():
        name, role = account
        handler.send_json({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": {"role": role}}})


def _validate_yaml(handler: Any) -> None:
    content = json.loads(handler.body)["content"]
    front = re.match(r"---\n(.*?)\n---\n", content, re.S)
    errors = _mistakes(yaml.safe_load(front[1])) if front else []
    warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
    handler.send_json({"errors": [{"message": e} for e in errors], "warnings": warnings}, 400 if errors else 200)


def _mistakes(metadata: Any) -> list[str]:
    """Errors in a card's metadata, by a few of the Hub's rules."""
    if not isinstance(metadata, dict):
        return ["metadata must be an object"]
    wrong = [] if _is_text(metadata.get("pipeline_tag", "")) else ['"pipeline_tag" must be a string']
    if not set(_listed(metadata, "license")) <= set(LICENSES):
        wrong.append(f'"license" must be one of [{", ".join(LICENSES)}, array]')
    wrong += ['"language" must be lowercase' for name in _listed(metadata, "language") if name != name.lower()]
    for number, name in enumerate(metadata.get("datasets", [])):
        wrong += _wrong_dataset(f"datasets[{number}]", name)
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= set(result):
                wrong.append('"model-index[0].results[0]" must hold task, dataset and metrics')
            if not {"type", "name"} <= set(result["dataset"]):
                wrong.append('"model-index[0].results[0].dataset" must hold type and name')
            wrong += _wrong_dataset("model-index[0].results[0].dataset.type", result["dataset"]["type"])
            wrong += ['"metrics[0].value" is required' for metric in result["metrics"] if "value" not in metric]
    return wrong


def _wrong_dataset(key: str, name: str) -> list[str]:
    if DATASET.fullmatch(name):
        return []
    return [f'"{key}" with value "{name}" fails to match the required pattern: /^(?:[\\w-]+\\/)?[\\w-.]+$/']


def _listed(metadata: dict[str, Any], key: str) -> list[Any]:
    value = metadata.get(key, [])
    return value if isinstance(value, list) else [value]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _create(handler: Any) -> None:
    request = json.loads(handler.body)
    account = handler.account()
    if account is None:
        return
    owner = request["organization"] or account[0]
    repo_id = f"{owner}/{request['name']}"
    if account != (owner, "write"):
        return handler.refuse(403, "Forbidden", f'You don\'t have the rights to create a model under "{owner}"')
    if not NAME.fullmatch(request["name"]):
        return handler.refuse(400, "BadRequest", f"Invalid repo name: {request['name']}")
    if ("model", repo_id) in handler.hub.repositories:
        return handler.refuse(409, "Conflict", "You already created this model repo")
    private = request.get("private") or request.get("visibility") == "private"  # before huggingface_hub 2, and since
    repository = Repository(private=bool(private))
    repository.commit(ATTRIBUTES, "main")
    handler.hub.repositories["model", repo_id] = repository
    handler.send_json({"url": f"{handler.hub.url}/{repo_id}"})


def _delete(handler: Any) -> None:
    request = json.loads(handler.body)
    repo_id = f"{request['organization']}/{request['name']}"
    if _writable(handler, repo_id):
        del handler.hub.repositories["model", repo_id]
        handler.send_json({})


def _writable(handler: Any, repo_id: str, *, proposal: bool = False) -> Repository | None:
    """The repository, if the request's account may write to it; None if the request has been refused."""
    account = handler.account()
    if account is None:
        return None
    repository: Repository | None = handler.repository(None, repo_id)
    if repository is None:
        handler.refuse(404, "RepoNotFound", "Repository not found")
        return None
    if account[1] != "write" or (account[0] != repo_id.split("/")[0] and not proposal):
        handler.refuse(403, "Forbidden", "You don't have write access to this repo")
        return None
    return repository


def _preupload(handler: Any, repo_id: str, revision: str, **_: str) -> None:
    repository = _writable(handler, repo_id, proposal="create_pr" in handler.query)
    if repository is None:
        return
    if repository.sha(revision) is None:
        return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    files = [
        {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"], f["size"]) else "regular", "shouldIgnore": False}
        for f in json.loads(handler.body)["files"]
    ]
    handler.send_json({"files": files})


def _batch(handler: Any, repo_id: str) -> None:
    if handler.account() is None:
        return
    objects = []
    for file in json.loads(handler.body)["objects"]:
        answer: dict[str, Any] = {"oid": file["oid"], "size": file["size"]}
        if file["size"] > LARGEST:
            answer["error"] = {"code": 422, "message": "the file is larger than this Hub takes"}
        elif file["oid"] not in handler.hub.objects:
            upload = {"href": f"{handler.hub.url}/objects/{file['oid']}"}
            verify = {"href": f"{handler.hub.url}/{repo_id}.git/info/lfs/objects/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    handler.send_json({"transfer": "basic", "objects": objects})


def _upload(handler: Any, oid: str) -> None:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        return handler.refuse(400, "BadRequest", "the content has another SHA-256")
    handler.hub.objects[oid] = handler.body
    handler.send(b"")


def _verify(handler: Any, repo_id: str) -> None:
    request = json.loads(handler.body)
    content = handler.hub.objects.get(request["oid"])
    if content is None or len(content) != request["size"]:
        return handler.refuse(404, "EntryNotFound", "no such object, or of another size")
    handler.send_json({})


def _commit(handler: Any, repo_id: str, revision: str, **_: str) -> None:
    proposal = "create_pr" in handler.query
    repository = _writable(handler, repo_id, proposal=proposal)
    if repository is None:
        return
    lines = [json.loads(line) for line in handler.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    base = repository.sha(revision)
    if base is None:
        return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if header.get("parentCommit") not in (None, base):
        return handler.refuse(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    files = dict(repository.commits[base])
    for line in lines:
        if mistake := _apply(handler, line["key"], line["value"], files):
            return handler.refuse(400, "BadRequest", mistake)
    branch = revision
    if proposal:
        repository.pull_requests.append(header["summary"])
        branch = f"refs/pr/{len(repository.pull_requests)}"
    sha = repository.commit(files, branch, parent=base, message=header["summary"])
    address = f"{handler.hub.url}/{repo_id}"
    request = f"{address}/discussions/{len(repository.pull_requests)}" if proposal else None
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{address}/commit/{sha}", "hookOutput": ""}
    handler.send_json({**answer, "pullRequestUrl": request})


def _apply(handler: Any, key: str, value: dict[str, Any], files: dict[str, bytes]) -> str | None:
    """Apply one line of a commit to the files; return its error, if any."""
    if key == "file":
        files[value["path"]] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        if value["oid"] not in handler.hub.objects:
            return f"{value['path']}: its content was not uploaded"
        files[value["path"]] = handler.hub.objects[value["oid"]]
    elif key == "deletedFile" and files.pop(value["path"], None) is None:
        return "A file with this name doesn't exist"
    return None


def _branch(handler: Any, repo_id: str, branch: str, **_: str) -> None:
    if repository := _writable(handler, repo_id):
        if branch in repository.branches:
            return handler.refuse(409, "Conflict", "Reference already exists")
        start = json.loads(handler.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.sha(start) or ""
        handler.send_json({})


def _tag(handler: Any, repo_id: str, revision: str, **_: str) -> None:
    if repository := _writable(handler, repo_id):
        tag, sha = json.loads(handler.body)["tag"], repository.sha(revision)
        if tag in repository.branches:
            return handler.refuse(409, "Conflict", f"Tag {tag} already exists")
        if sha is None:
            return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        repository.branches[tag] = sha
        handler.send_json({})


def _discussions(handler: Any, kind: str, repo_id: str) -> None:
    repository = handler.repository(kind, repo_id)
    if repository is None:
        return handler.refuse(404, "RepoNotFound", "Repository not found")
    discussions = [
        {
            "num": number,
            "title": title,
            "author": {"name": "me"},
            "createdAt": "2024-01-01T00:00:00.000Z",
            "status": "open",
            "repo": {"name": repo_id, "type": "model"},
            "isPullRequest": True,
        }
        for number, title in enumerate(repository.pull_requests, start=1)
    ]
    handler.send_json({"discussions": discussions, "count": len(discussions), "start": 0})


WRITING: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/validate-yaml", _validate_yaml),
    ("POST", "/api/repos/create", _create),
    ("DELETE", "/api/repos/delete", _delete),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", _preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _batch),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", _verify),
    ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", _upload),
    ("POST", rf"{API}/commit/(?P<revision>.+)", _commit),
    ("POST", rf"{API}/branch/(?P<branch>.+)", _branch),
    ("POST", rf"{API}/tag/(?P<revision>.+)", _tag),
    ("GET", rf"{API}/discussions", _discussions),
]
