"""Publishing, with every request to the Hub going wrong in every way.

    python tests/hub_faults.py [--every N]

publishes a small artifact to the Hub on loopback, once for each request that this takes and each thing that can go
wrong with it: refused once, for a while or for good; cut in the middle; done, and the answer lost; read slowly; the
publishing process killed. First to a new repository, then over an earlier artifact. After each it looks whether the
branch holds all files of one artifact or those of none, and whether the error says so; then it publishes again, with
nothing in the way, and holds every byte and the tag. Prints what was tried and what was lost.
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
FOR_GOOD = 10**6
EMPTY = dict(ATTRIBUTES)
"""What a new repository holds."""

REQUESTS = {
    "who am I": "GET /api/whoami-v2",
    "look": f"GET /api/models/{REPO}/revision/main",
    "make the repository": "POST /api/repos/create",
    "check the card": "POST /api/validate-yaml",
    "announce": f"POST /api/models/{REPO}/preupload/main",
    "batch": f"POST /{REPO}.git/info/lfs/objects/batch",
    "upload": "PUT /objects/.*",
    "verify the upload": f"POST /{REPO}.git/info/lfs/objects/verify",
    "commit": f"POST /api/models/{REPO}/commit/main",
    "fetch back": f"GET /{REPO}/resolve/.*/config.json",
    "look for the tag": f"GET /api/models/{REPO}/revision/{TAG}",
    "tag": f"POST /api/models/{REPO}/tag/.*",
}
FAULTS: dict[str, dict[str, Any]] = {
    "401": {"status": 401, "times": FOR_GOOD},
    "403, saying the token": {"status": 403, "times": FOR_GOOD, "says": f"no rights for {TOKEN}"},
    "409 once": {"status": 409},
    "429, Retry-After 7, twice": {"status": 429, "times": 2, "headers": {"Retry_After": "7"}},
    "500 three times": {"status": 500, "times": 3},
    "503 for good": {"status": 503, "times": FOR_GOOD},
    "connection cut once": {"cut": True},
    "connection cut for good": {"cut": True, "times": FOR_GOOD},
    "answer lost once": {"lose": True},
    "answer lost for good": {"lose": True, "times": FOR_GOOD},
    "read slowly": {"slow": 0.01, "times": FOR_GOOD},
    "killed before": {"kill": True, "cut": True},
    "killed after": {"kill": True, "lose": True},
}


@dataclass
class Case:
    """One thing that goes wrong with one request."""

    request: str
    fault: str
    replaces: bool
    """Whether the repository holds an earlier artifact, or is not there yet."""

    def __str__(self) -> str:
        return f"{self.request}, {self.fault}, {'over an earlier artifact' if self.replaces else 'new repository'}"


def cases() -> list[Case]:
    return [Case(request, fault, replaces) for replaces in (False, True) for request in REQUESTS for fault in FAULTS]


class Trial:
    """A Hub of its own state for each case, in one process."""

    def __init__(self, folder: Path, server: Hub) -> None:
        from proven import make

        self.server = server
        self.old, self.new = make(folder / "old" / "tiny", weights=b"old" * 999), make(folder / "new" / "tiny")
        self.waited: list[float] = []
        time.sleep = self.waited.append  # type: ignore[assignment]  # every wait, of huggingface_hub too

    def losses(self, case: Case) -> Iterator[str]:
        before = self._start(case)
        ended = self._in_child(self.new, case)
        files = self._files()
        landed = files == self._wanted()
        if files not in (before, EMPTY) and not landed:
            yield f"{case}: the branch holds {sorted(files or [])}"
        if case.replaces and files == EMPTY:
            yield f"{case}: the earlier artifact is gone"
        yield from (f"{case}: {wrong}" for wrong in _wrongly_told(ended, case, landed, self._is_tagged(), before))
        self.server.faults.clear()
        again = self._in_child(self.new, None)
        if again.get("error") or self._files() != self._wanted() or not self._is_tagged():
            yield f"{case}: the next run ended with {again}"
        if (made := len(self._commits())) != 1 + case.replaces:
            yield f"{case}: {made} commits were made"

    def _start(self, case: Case) -> dict[str, bytes] | None:
        self.server.repositories.clear()
        self.server.objects.clear()
        self.server.faults.clear()
        if case.replaces:
            self._in_child(self.old, None, tag=None)
        return self._files()

    def _in_child(self, artifact: Path, case: Case | None, tag: str | None = TAG) -> dict[str, Any]:
        """Publish in a fork, with the fault of the case planted; what it said of its end."""
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

        said: list[str] = []
        reporter = _Reporter(said)
        try:
            done = publish(artifact, REPO, tag=tag, reporter=reporter)
            return {"commit": done.commit, "said": said, "waited": self.waited}
        except QABuildError as error:
            kind, told = type(error).__name__, traceback.format_exc()
            return {"error": kind, "message": str(error), "traceback": told, "said": said, "waited": self.waited}
        except BaseException:
            return {"error": "a defect", "message": "", "traceback": traceback.format_exc(), "said": said}

    def _files(self) -> dict[str, bytes] | None:
        found = self.server.repositories.get(("model", REPO))
        return dict(found.commits[found.branches["main"]]) if found else None

    def _wanted(self) -> dict[str, bytes]:
        """Every file of the new artifact; the card is what was sent."""
        files = {p.relative_to(self.new).as_posix(): p.read_bytes() for p in self.new.rglob("*") if p.is_file()}
        there = self._files() or {}
        return {**files, **{name: there.get(name, b"") for name in ("README.md", ".gitattributes")}}

    def _commits(self) -> list[str]:
        return [message for message in self.server.repositories["model", REPO].messages.values() if message]

    def _is_tagged(self) -> bool:
        found = self.server.repositories.get(("model", REPO))
        return found is not None and found.branches.get(TAG) == found.branches["main"]


class _Reporter:
    """Keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def say(self, message: str) -> None:
        self.said.append(message)

    def progress(self, label: str, total: int) -> Any:
        raise AssertionError("nothing here has a bar of its own")


def _wrongly_told(
    ended: dict[str, Any], case: Case, landed: bool, tagged: bool, before: dict[str, bytes] | None
) -> Iterator[str]:
    """What the run said that is not so."""
    if TOKEN in json.dumps(ended):
        yield "the token was told"
    if ended.get("error") == "a defect":
        yield ended["traceback"]
    message = ended.get("message", "")
    if not message:
        if not ended.get("error") and not (landed and tagged):
            yield "it said that all is well"
        return
    says_landed = "all files are at" in message
    if "is not known" in message and "whether the commit" in message:
        return
    if says_landed != landed:
        yield f"landed is {landed}, and it said {message!r}"
    if "was made and is empty" in message and before is not None:
        yield f"the repository was there before, and it said {message!r}"
    if case.fault.startswith("429") or "once" in case.fault or "slowly" in case.fault:
        yield f"it gave up: {message!r}"


def run(every: int = 1) -> dict[str, Any]:
    """Try every `every`-th case; what was tried, how it ended, and what was lost."""
    with tempfile.TemporaryDirectory() as folder, Hub({TOKEN: ("me", "write")}) as server:
        os.environ |= {**server.environment(Path(folder, "home")), "HF_TOKEN": TOKEN}
        # Only now, since huggingface_hub reads the environment; and all of it, since forks would do it again.
        import huggingface_hub._snapshot_download
        import jinja2  # noqa: F401

        import qabuild.publishing.publish  # noqa: F401

        assert server.url == huggingface_hub.constants.ENDPOINT
        trial = Trial(Path(folder), server)
        tried = cases()[::every]
        losses = [loss for case in tried for loss in trial.losses(case)]
    return {"requests": len(REQUESTS), "faults": len(FAULTS), "tried": len(tried), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="try every N-th case only")
    report = run(parser.parse_args().every)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["losses"]))


if __name__ == "__main__":
    main()
