"""A folder from which `docker build` makes an image that runs `qabuild serve`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from qabuild.artifact import handler
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.validation import unverified
from qabuild.publishing.layouts import wheel
from qabuild.publishing.layouts.copy import copy_artifact
from qabuild.publishing.layouts.portability import require_portable
from qabuild.system import packages

SUMMARY = "an image that runs `qabuild serve`"
SEVERAL = False

FOLDER = "artifact"
PORT = 8000

DOCKERFILE = Template(
    """\
# Answers questions over HTTP from the artifact in artifact/, by `qabuild serve`, on port $port.
# Made by `qabuild export`; the manifest's SHA-256 is
# $digest.
ARG PYTHON_IMAGE=python:$python-slim
FROM $${PYTHON_IMAGE}

RUN useradd --create-home --uid 10001 qabuild
WORKDIR /srv

# First and by itself: the layer is large, and changes least.
ARG TORCH_INDEX=$torch_index
RUN PIP_INDEX_URL="$${TORCH_INDEX}" pip install --no-cache-dir $torch

COPY $wheel requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

COPY --chown=qabuild $folder $folder/
USER 10001
ENV HF_HUB_OFFLINE=1
EXPOSE $port
# Ready once every file was checked against the manifest, and the model has answered a question.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \\
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:$port/readyz', timeout=4)"]
CMD $command
"""
)

GUIDE = Template(
    """\
## Use

    docker build -t $image $folder
    docker run --rm$gpus -p 127.0.0.1:$port:$port $image
    curl http://127.0.0.1:$port/answer -d '{"question": "Who?", "context": "Ann Vole built the mill."}'

`GET /docs` describes the server. It runs as user 10001, and writes to /tmp only: `--read-only --tmpfs /tmp` works.
Docker asks `/readyz` whether it is healthy. With `-e QABUILD_SERVE_TOKEN`, clients must send that token.

`requirements.txt` pins the packages that compiled the model and those of the server; the wheel is the qabuild that
exported it. Other packages come in the newest release that these admit: to fix them, too, keep the image.
Build arguments: `PYTHON_IMAGE` is the base image, `TORCH_INDEX` the package index that torch comes from.

## What differs

Texts and places of the answers are those of the artifact. A score may differ in its last digits, as with every
`qabuild serve`: other questions share the batch. Another processor rounds differently, too.
"""
)

_LABELLED = re.compile(r"cpu|cu\d+")
"""Local version labels that are names of torch's package indexes, too."""


def check(artifact: Artifact) -> None:
    """Raise BadTarget for native code, and MissingEnvironment without the server's packages, which are pinned."""
    packages.refuse(packages.missing(dict.fromkeys(wheel.extra("serve"), ("serve",)), "cpu"))
    require_portable(artifact)


def write(artifacts: Sequence[Artifact], directory: Path) -> None:
    """Write Dockerfile, requirements.txt, the wheel of qabuild, and the artifact."""
    (artifact,) = artifacts
    copy_artifact(artifact, directory / FOLDER)
    name = wheel.write(directory)
    manifest = artifact.manifest
    pins = handler.contents(manifest.options, manifest.runtime, manifest.versions)[handler.REQUIREMENTS].splitlines()
    server = [f"{package}=={version}" for package, version in packages.versions(wheel.extra("serve")).items()]
    lines = [*sorted(pins + server), f"./{name}[serve]"]
    (directory / handler.REQUIREMENTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    dockerfile = DOCKERFILE.substitute(
        digest=artifact.digest,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        torch=next((pin for pin in pins if pin.startswith("torch==")), "torch"),
        torch_index=_torch_index(artifact),
        wheel=name,
        folder=FOLDER,
        port=PORT,
        command=json.dumps(command(artifact)),
    )
    (directory / "Dockerfile").write_text(dockerfile, encoding="utf-8")


def guide(artifacts: Sequence[Artifact], name: str) -> str:
    """How to build and run the image."""
    (artifact,) = artifacts
    gpus = " --gpus all" if artifact.manifest.runtime.device == "cuda" else ""
    return GUIDE.substitute(image=_plain(name).lower(), folder=shlex.quote(name), port=PORT, gpus=gpus)


def command(artifact: Artifact) -> list[str]:
    """What the container runs, in the exported folder."""
    source = f"{_plain(artifact.manifest.name)}={FOLDER}"
    allowed = ["--allow-unverified"] if unverified(artifact) else []
    return ["qabuild", "serve", source, "--host", "0.0.0.0", "--port", str(PORT), *allowed]


def _plain(name: str) -> str:
    """The name, if it can stand in an address and be that of an image."""
    return name if re.fullmatch(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", name) else "answers"


def _torch_index(artifact: Artifact) -> str:
    """The package index that has the artifact's build of torch; on PyPI, it is the one for GPUs."""
    label = artifact.manifest.versions["torch"].partition("+")[2]
    if artifact.manifest.runtime.device == "cpu":
        label = "cpu"
    return f"https://download.pytorch.org/whl/{label}" if _LABELLED.fullmatch(label) else "https://pypi.org/simple"
