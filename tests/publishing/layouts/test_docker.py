"""The folder of a container image: its requirements fit the artifact, and what it runs answers as verified."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import proven
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from server import Server

import qabuild
from qabuild.artifact import handler
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.publishing.layouts import wheel

pytestmark = pytest.mark.both_lines

QUESTION = {"question": "Who built the mill?", "context": "Ann Vole built the mill in 1871."}


@pytest.fixture(scope="module")
def image(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qabuild.export(artifact, "docker", tmp_path_factory.mktemp("exported") / "image").directory


def instructions(image: Path) -> dict[str, str]:
    """The instructions of the Dockerfile; of those that are there several times, the last."""
    text = (image / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: rest.strip() for name, _, rest in (line.partition(" ") for line in lines)}


def pins(image: Path) -> dict[str, str]:
    """The version of each package that requirements.txt pins."""
    lines = (image / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("./"))


# --- running ----------------------------------------------------------------------------------------------------------


def test_its_command_answers_and_its_health_check_waits_until_it_does(image, artifact):
    program, serve, *arguments = json.loads(instructions(image)["CMD"])
    assert (program, serve) == ("qabuild", "serve")
    check = json.loads(re.sub(r"^.*? CMD ", "", instructions(image)["HEALTHCHECK"]))

    def is_healthy(port: int) -> bool:
        program, option, source = check
        assert (program, option) == ("python", "-c")
        source = source.replace(":8000/", f":{port}/")
        return subprocess.run([sys.executable, "-c", source], stderr=subprocess.DEVNULL).returncode == 0

    # Given last, so that the test takes a free port, on loopback only.
    with Server(*arguments, "--host", "127.0.0.1", cwd=image) as server:
        assert is_healthy(server.port)
        expected = qabuild.load(artifact)(**QUESTION)
        assert server.ask({**QUESTION, "model": "tiny"}) == {**expected, "score": pytest.approx(expected["score"])}
        port = server.port
    assert not is_healthy(port)


def test_it_runs_as_a_user_of_its_own_and_all_that_it_copies_is_there(image):
    assert instructions(image)["USER"] == "10001"
    copied = re.findall(r"^COPY (?:--chown=\w+ )?(.+) \S+$", (image / "Dockerfile").read_text(), re.M)
    names = [name for line in copied for name in shlex.split(line)]
    assert {*names, "Dockerfile", "README.md"} == {path.name for path in image.iterdir()}


def test_an_unverified_artifact_is_served_as_such(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    (artifact / "verification.json").unlink()
    exported = qabuild.export(artifact, "docker", tmp_path / "image", allow_unverified=True)
    assert json.loads(instructions(exported.directory)["CMD"])[-1] == "--allow-unverified"


# --- requirements -----------------------------------------------------------------------------------------------------


def test_it_pins_the_packages_that_compiled_the_model_and_those_of_the_server(image, artifact):
    sealed = dict(line.split("==") for line in (artifact / handler.REQUIREMENTS).read_text().splitlines())
    server = {name: metadata.version(name) for name in ("prometheus-client", "starlette", "uvicorn")}
    assert pins(image) == sealed | server


def test_qabuild_admits_the_pinned_versions(image):
    wanted = [Requirement(line) for line in metadata.requires("qabuild") or ()]
    admitted = {
        each.name: each.specifier for each in wanted if not each.marker or each.marker.evaluate({"extra": "serve"})
    }
    for name, version in pins(image).items():
        assert admitted.get(name, SpecifierSet()).contains(version), name


@pytest.mark.parametrize(
    ("device", "torch", "index"),
    [
        ("cpu", "2.13.0+cpu", "https://download.pytorch.org/whl/cpu"),
        ("cpu", "2.13.0", "https://download.pytorch.org/whl/cpu"),
        ("cuda", "2.13.0+cu130", "https://download.pytorch.org/whl/cu130"),
        ("cuda", "2.13.0", "https://pypi.org/simple"),
    ],
)
def test_torch_comes_from_the_index_that_has_its_build(tmp_path, device, torch, index):
    versions = {"torch": torch, "transformers": "5.24.0", "tokenizers": "0.23.3"}
    other = proven.alter(proven.make(tmp_path / "tiny"), versions=versions, runtime={"device": device, "dtype": "fp32"})
    image = qabuild.export(other, "docker", tmp_path / "image", allow_unverified=True).directory
    text = (image / "Dockerfile").read_text()
    assert f"ARG TORCH_INDEX={index}\n" in text
    assert 'RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir torch==2.13.0\n' in text
    assert ("--gpus all" in (image / "README.md").read_text()) is (device == "cuda")


def test_a_version_that_would_be_an_instruction_is_refused(tmp_path):
    versions = {"torch": "2.13.0\nRUN echo", "transformers": "5.24.0", "tokenizers": "0.23.3"}
    artifact = proven.alter(proven.make(tmp_path / "tiny"), versions=versions)
    with pytest.raises(UntrustedInput, match="is no version of torch"):
        qabuild.export(artifact, "docker", tmp_path / "image", allow_unverified=True)


def test_native_code_is_refused(tmp_path):
    artifact = proven.alter(proven.make(tmp_path / "tiny"), backend={"name": "torch_export", "aot": True})
    with pytest.raises(BadTarget, match="native code"):
        qabuild.export(artifact, "docker", tmp_path / "image", allow_unverified=True)


# --- the wheel --------------------------------------------------------------------------------------------------------


def test_the_wheel_installs_as_the_package_that_wrote_it(tmp_path, monkeypatch):
    name = wheel.write(tmp_path)
    installed = tmp_path / "installed"
    options = ["--no-deps", "--no-index", "--no-compile", "--target", installed]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, tmp_path / name], check=True)

    def contents(package: Path) -> dict[str, bytes]:
        files = [Path(folder, name) for folder, _, names in os.walk(package, followlinks=True) for name in names]
        return {str(f.relative_to(package)): f.read_bytes() for f in files if "__pycache__" not in f.parts}

    assert contents(installed / "qabuild") == contents(Path(qabuild.__file__).parent)
    script = subprocess.run(
        [installed / "bin" / "qabuild", "--version"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert qabuild.__version__ in script.stdout
    (tmp_path / "again").mkdir()
    assert (tmp_path / "again" / wheel.write(tmp_path / "again")).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.sealed
def test_an_environment_of_its_requirements_serves_as_verified(image, artifact, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"], cwd=image, check=True)
    _, _, *arguments = json.loads(instructions(image)["CMD"])
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with Server(*arguments, "--host", "127.0.0.1", cwd=image, env=environment, python=python) as server:
        expected = qabuild.load(artifact)(**QUESTION)
        assert server.ask(QUESTION) == {**expected, "score": pytest.approx(expected["score"])}
