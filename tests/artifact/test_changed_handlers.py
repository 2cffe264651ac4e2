"""A handler that qabuild did not write is refused, resealed or not: it would run where the artifact is served."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proven
import pytest

import qabuild
from qabuild.artifact import handler, manifest
from qabuild.artifact.manifest import open_artifact
from qabuild.errors import UntrustedInput
from qabuild.system import files
from qabuild.system.version import VERSION
from tools import handlers

ARCHIVE = Path(__file__).parents[1] / "support" / "artifact-0.1.0.tar.xz"


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def add(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('ran')\n")

    return write


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a line in the handler": ("handler.py", edit("handler.py", lambda text: text + "import os; os.system('id')\n")),
    "an empty handler": ("handler.py", edit("handler.py", lambda text: "")),
    "a carriage return": ("handler.py", edit("handler.py", lambda text: text.replace("\n", "\r", 1))),
    "another backend's handler": (
        "handler.py",
        edit("handler.py", lambda text: text.replace("AutoModelForQuestionAnswering", "AutoModel")),
    ),
    "a package more": ("requirements.txt", edit("requirements.txt", lambda text: text + "evil==1.0\n")),
    "another version": ("requirements.txt", edit("requirements.txt", lambda text: text.replace("==", "==0."))),
    "an option of pip": ("requirements.txt", edit("requirements.txt", lambda text: "--editable ./evil\n" + text)),
    "a package less": ("requirements.txt", edit("requirements.txt", lambda text: text.split("\n", 1)[1])),
    "a module that the handler imports": ("torch.py", add("torch.py")),
    "a package that the handler imports": ("transformers/__init__.py", add("transformers/__init__.py")),
    "a package in the handler's place": ("handler/__init__.py", add("handler/__init__.py")),
    "an extension module": ("numpy.abi3.so", add("numpy.abi3.so")),
    "compiled Python": ("json.pyc", add("json.pyc")),
}


def reseal(folder: Path, **facts: Any) -> None:
    """As any author of an artifact can: sums, manifest and evidence agree."""
    old = manifest.read_manifest(folder)
    kept = {name: value for name, value in old.__dict__.items() if name not in ("files", "options", "gates")}
    proven.verify(manifest.seal(folder, **{**kept, **facts}))


@pytest.mark.parametrize(("file", "change"), CHANGES.values(), ids=CHANGES)
def test_a_changed_handler_is_refused_although_it_was_resealed(tmp_path, file, change):
    folder = proven.make(tmp_path / "tiny")
    reseal(folder)
    open_artifact(folder)
    change(folder)
    reseal(folder)
    for refuse in (open_artifact, qabuild.load, qabuild.verify, qabuild.publish):
        with pytest.raises(UntrustedInput, match=f"tiny/{file}: "):
            refuse(folder)


@pytest.mark.parametrize("version", ["1.0\nevil==1.0", "1.0 --editable ./evil", "1.0; python_version", "@ x"])
def test_a_version_of_the_manifest_adds_nothing_to_the_requirements(tmp_path, version):
    folder = proven.make(tmp_path / "tiny")
    versions = {**open_artifact(folder).manifest.versions, "torch": version}
    pinned = (folder / "requirements.txt").read_text().splitlines()
    lines = [f"torch=={version}" if line.startswith("torch==") else line for line in pinned]
    (folder / "requirements.txt").write_text("\n".join([*lines, ""]))
    reseal(folder, versions=versions)
    with pytest.raises(UntrustedInput, match="is no version of torch"):
        open_artifact(folder)


def test_every_command_that_opens_an_artifact_ends_with_status_4(tmp_path):
    folder = proven.make(tmp_path / "tiny")
    edit("handler.py", lambda text: text + "import os\n")(folder)
    reseal(folder)
    (tmp_path / "questions.jsonl").write_text('{"question": "Who?", "context": "Ann."}\n')
    for command in (["verify"], ["publish", "--dry-run"], ["answer"]):
        questions = ["questions.jsonl"] if command == ["answer"] else []
        process = subprocess.run(
            [sys.executable, "-m", "qabuild", *command, "tiny", *questions],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 4, process.stderr
        assert "tiny/handler.py: not what qabuild writes" in process.stderr


def test_handlers_of_earlier_versions_stay_valid_for_their_own_backend_only(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    earlier = (tmp_path / "tiny" / "handler.py").read_bytes()
    open_artifact(tmp_path / "tiny")
    folder = proven.make(tmp_path / "other")
    (folder / "handler.py").write_bytes(earlier)
    reseal(folder)
    open_artifact(folder)
    reseal(folder, backend={"name": "torchscript"})
    with pytest.raises(UntrustedInput, match=r"handler\.py: not what qabuild writes"):
        open_artifact(folder)


def test_earlier_requirements_pinned_optimum_for_onnx_runtime_alone(tmp_path):
    folder = proven.make(tmp_path / "tiny")
    text = (folder / "requirements.txt").read_text()
    (folder / "requirements.txt").write_text(f"optimum==2.1.0\n{text}")
    versions = {**open_artifact_versions(folder), "optimum": "2.1.0"}
    reseal(folder, versions=versions)
    with pytest.raises(UntrustedInput, match=r"requirements\.txt: not what qabuild writes"):
        open_artifact(folder)
    (folder / "handler.py").write_text(handler.contents(*onnx(), versions)["handler.py"])
    reseal(folder, versions=versions, backend=onnx()[0].model_dump())
    open_artifact(folder)


def open_artifact_versions(folder: Path) -> dict[str, str]:
    return dict(manifest.read_manifest(folder).versions)


def onnx() -> tuple[Any, Any]:
    from qabuild.models.backends import onnxruntime
    from qabuild.models.runtime import Runtime

    return onnxruntime.Options(), Runtime(device="cpu", dtype="fp32")


def test_the_handlers_of_a_release_are_in_the_list(tmp_path):
    folder = proven.make(tmp_path / "tiny")
    written = handlers.handlers()
    assert f"{files.sha256(folder / 'handler.py')} eager cpu fp32" in written
    assert "dev" in VERSION or written <= set(handler.EARLIER_HANDLERS.read_text().splitlines())
