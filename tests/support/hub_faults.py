"""Fault injection for publishing: every request to the Hub fails in every way.

    python tests/support/hub_faults.py [--every N]

publishes a small artifact to the Hub on loopback, once for each request and each fault: refused once, temporarily or
permanently; connection cut; processed, but the answer lost; read slowly; the publishing process killed. First to a new
repository, then over an earlier artifact. After each fault it checks that the branch holds all files of one artifact or
none, and that the error says so; then it publishes again without faults and compares every byte and the tag. Prints
what was tried and what was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub import Hub
from hub_writing import ATTRIBUTES

TOKEN = "hf_thistokenmustnotleak"
REPO, TAG = "me/tiny", "v1"
ALWAYS = 10**6
EMPTY = dict(ATTRIBUTES)
"""The files of a new repository."""
MADE = ("README.md", ".gitattributes", ".eval_results/qabuild-exact_match.yaml", ".eval_results/qabuild-f1.yaml")
"""Files that are made when an artifact is published."""

REQUESTS = {
    "who am I": "GET /api/whoami-v2",
    "query the branch": f"GET /api/models/{REPO}/revision/main",
    "make the repository": "POST /api/repos/create",
    "check the card": "POST /api/validate-yaml",
    "announce": f"POST /api/models/{REPO}/preupload/main",
    "batch": f"POST /{REPO}.git/info/lfs/objects/batch",
    "upload": "PUT /objects/.*",
    "verify the upload": f"POST /{REPO}.git/info/lfs/objects/verify",
    "commit": f"POST /api/models/{REPO}/commit/main",
    "fetch back": f"GET /{REPO}/resolve/.*/config.json",
    "query the tag": f"GET /api/models/{REPO}/revision/{TAG}",
    "tag": f"POST /api/models/{REPO}/tag/.*",
}
FAULTS: dict[str, dict[str, Any]] = {
    "401": {"status": 401, "times": ALWAYS},
    "403, with the token in the message": {"status": 403, "times": ALWAYS, "says": f"no rights for {TOKEN}"},
    "409 once": {"status": 409},
    "429, Retry-After 7, twice": {"status": 429, "times": 2, "headers": {"Retry_After": "7"}},
    "500 three times": {"status": 500, "times": 3},
    "503 always": {"status": 503, "times": ALWAYS},
    "connection cut once": {"cut": True},
    "connection cut always": {"cut": True, "times": ALWAYS},
    "answer lost once": {"lose": True},
    "answer lost always": {"lose": True, "times": ALWAYS},
    "read slowly": {"slow": 0.01, "times": ALWAYS},
    "killed before": {"kill": True, "cut": True},
    "killed after": {"kill": True, "lose": True},
}


@dataclass
class Case:
    """One fault of one request."""

    request: str
    fault: str
    replaces: bool
    """Whether the repository holds an earlier artifact; else it does not exist yet."""

    def __str__(self) -> str:
        return f"{self.request}, {self.fault}, {'over an earlier artifact' if self.replaces else 'new repository'}"


def cases() -> list[Case]:
    return [Case(request, fault, replaces) for replaces in (False, True) for request in REQUESTS for fault in FAULTS]


class Trial:
    """Runs cases in one process, each from a fresh state of the Hub."""

    def __init__(self, folder: Path, server: Hub) -> None:
        from proven import make

        self.server = server
        self.old, self.new = make(folder / "old" / "tiny", weights=b"old" * 999), make(folder / "new" / "tiny")
        self.waited: list[float] = []
        time.sleep = self.waited.append  # type: ignore[assignment]  # every wait, of huggingface_hub too

    def losses(self, case: Case) -> Iterator[str]:
        before = self._start(case)
        outcome = self._in_child(self.new, case)
        files = self._files()
        landed = files == self._expected_files()
        if files not in (before, EMPTY) and not landed:
            yield f"{case}: the branch holds {sorted(files or [])}"
        if case.replaces and files == EMPTY:
            yield f"{case}: the earlier artifact is gone"
        yield from (f"{case}: {error}" for error in _false_reports(outcome, case, landed, self._is_tagged(), before))
        self.server.faults.clear()
        retried = self._in_child(self.new, None)
        if retried.get("error") or self._files() != self._expected_files() or not self._is_tagged():
            yield f"{case}: the next run ended with {retried}"
        if (count := len(self._commits())) != 1 + case.replaces:
            yield f"{case}: {count} commits were made"

    def _start(self, case: Case) -> dict[str, bytes] | None:
        self.server.repositories.clear()
        self.server.objects.clear()
        self.server.faults.clear()
        if case.replaces:
            self._in_child(self.old, None, tag=None)
        return self._files()

    def _in_child(self, artifact: Path, case: Case | None, tag: str | None = TAG) -> dict[str, Any]:
        """Publish in a forked process with the case's fault injected, and return its outcome."""
        (artifact / "README.md").unlink(missing_ok=True)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            os.write(writing, json.dumps(self._publish(artifact, tag)).encode())
            os._exit(0)
        os.close(writing)
        if case is not None:
            fault = dict(FAULTS[case.fault])
            if fault.pop("kill", False):
                fault["then"] = lambda: os.kill(child, signal.SIGKILL)
            self.server.fail(REQUESTS[case.request], **fault)
        with os.fdopen(reading) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        return json.loads(text) if text else {"error": "killed", "message": "", "traceback": ""}

    def _publish(self, artifact: Path, tag: str | None) -> dict[str, Any]:
        from qabuild.errors import QABuildError
        from qabuild.publishing.publish import publish

        messages: list[str] = []
        reporter = _Reporter(messages)
        log = {"said": messages, "waited": self.waited}
        try:
            published = publish(artifact, REPO, tag=tag, reporter=reporter)
            return {"commit": published.commit, **log}
        except QABuildError as error:
            kind, trace = type(error).__name__, traceback.format_exc()
            return {"error": kind, "message": str(error), "traceback": trace, **log}
        except BaseException:
            return {"error": "a defect", "message": "", "traceback": traceback.format_exc(), "said": messages}

    def _files(self) -> dict[str, bytes] | None:
        repository = self.server.repositories.get(("model", REPO))
        return dict(repository.commits[repository.branches["main"]]) if repository else None

    def _expected_files(self) -> dict[str, bytes]:
        """All files of the new artifact, and what is made beside them, as published."""
        files = {p.relative_to(self.new).as_posix(): p.read_bytes() for p in self.new.rglob("*") if p.is_file()}
        published = self._files() or {}
        return {**files, **{name: published.get(name, b"") for name in MADE}}

    def _commits(self) -> list[str]:
        return [message for message in self.server.repositories["model", REPO].messages.values() if message]

    def _is_tagged(self) -> bool:
        repository = self.server.repositories.get(("model", REPO))
        return repository is not None and repository.branches.get(TAG) == repository.branches["main"]


class _Reporter:
    """Records messages."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages

    def say(self, message: str) -> None:
        self.messages.append(message)

    def progress(self, label: str, total: int) -> Any:
        raise AssertionError("publishing has no progress bar of its own")


def _false_reports(
    outcome: dict[str, Any], case: Case, landed: bool, tagged: bool, before: dict[str, bytes] | None
) -> Iterator[str]:
    """False statements in the run's messages."""
    if TOKEN in json.dumps(outcome):
        yield "the token leaked"
    if outcome.get("error") == "a defect":
        yield outcome["traceback"]
    message = outcome.get("message", "")
    if not message:
        if not outcome.get("error") and not (landed and tagged):
            yield "it reported success"
        return
    says_landed = "all files are at" in message
    if "is not known" in message and "whether the commit" in message:
        return
    if says_landed != landed:
        yield f"landed is {landed}, but the message was {message!r}"
    if "was made and is empty" in message and before is not None:
        yield f"the repository existed before, but the message was {message!r}"
    if case.fault.startswith("429") or "once" in case.fault or "slowly" in case.fault:
        yield f"it gave up: {message!r}"


def run(every: int = 1) -> dict[str, Any]:
    """Run every `every`-th case; return the counts and the losses."""
    with tempfile.TemporaryDirectory() as folder, Hub({TOKEN: ("me", "write")}) as server:
        os.environ |= {**server.environment(Path(folder, "home")), "HF_TOKEN": TOKEN}
        # Imported here, after the environment is set, and before forking, so that forks need not import them again.
        import huggingface_hub._snapshot_download
        import jinja2  # noqa: F401

        import qabuild.publishing.publish  # noqa: F401

        assert server.url == huggingface_hub.constants.ENDPOINT
        trial = Trial(Path(folder), server)
        selected = cases()[::every]
        losses = [loss for case in selected for loss in trial.losses(case)]
    return {"requests": len(REQUESTS), "faults": len(FAULTS), "tried": len(selected), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="run every N-th case only")
    report = run(parser.parse_args().every)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["losses"]))


if __name__ == "__main__":
    main()
