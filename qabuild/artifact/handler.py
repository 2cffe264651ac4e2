"""Writes handler.py and requirements.txt, with which Hugging Face Inference Endpoints can serve an artifact.

Both are written when the artifact is compiled and are sealed with it, so the verified files are the served files. The
handler contains the backend's loading snippet and the plain decoder, so it needs neither qabuild nor a pipeline of
transformers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from importlib.machinery import all_suffixes
from pathlib import Path
from string import Template
from textwrap import indent

from qabuild.errors import UntrustedInput
from qabuild.models.backends import backend
from qabuild.models.runtime import Runtime
from qabuild.qa import ask
from qabuild.qa.parameter_values import BATCHING, CHOICES, COUNTS
from qabuild.system import files
from qabuild.system.frozen import Frozen
from qabuild.system.packages import distributions

HANDLER = "handler.py"
REQUIREMENTS = "requirements.txt"
EARLIER_HANDLERS = Path(__file__).with_name("earlier_handlers.txt")
"""Each line: SHA-256 of a handler.py that an earlier qabuild wrote, backend, device, dtype. See tools/handlers.py."""
EARLIER_PACKAGES: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("optimum", "optimum-onnx")}
"""Further packages that requirements.txt of an earlier qabuild pins, by backend."""

TEMPLATE = Template(
    '''\
"""Answers questions from the model beside this file, for Hugging Face Inference Endpoints.

Made by qabuild when the model was compiled. It needs the packages of requirements.txt, and no qabuild.
"""

import json
import os
$decoder
LEAST = $least
CHOICES = $choices
WITHOUT_EFFECT = $without_effect


def load(directory):
    """Model and tokenizer from the files of that folder."""
$snippet
    return model, tokenizer


class EndpointHandler:
    """Holds the model; called once for each request."""

    def __init__(self, path=""):
        self.model, self.tokenizer = load(path or ".")
        with open(os.path.join(path or ".", "manifest.json"), encoding="utf-8") as file:
            self.parameters = json.load(file)["answer"]

    def __call__(self, data):
        """Answer {"inputs": {"question": ..., "context": ...}, "parameters": {...}}, or a list of inputs.

        Parameters that are not given are those with which the model was verified: `answer` in manifest.json.

        An answer is a dictionary of `answer`, `score`, `start` and `end`, or a list of them with a top_k above 1; a
        list of inputs gives a list of these. `question_truncated` is true in the answers to a question that was too
        long. Raises ValueError for a request of another form.
        """
        if not isinstance(data, dict) or not isinstance(data.get("parameters") or {}, dict):
            raise ValueError('give {"inputs": {"question": "...", "context": "..."}, "parameters": {...}}')
        inputs, parameters = data.get("inputs"), {**self.parameters, **_parameters(data.get("parameters") or {})}
        asked = inputs if isinstance(inputs, list) else [inputs]
        answers = [answer(self.model, self.tokenizer, **_checked(each), **parameters) for each in asked]
        return answers if isinstance(inputs, list) else answers[0]


def _parameters(given):
    """Those of the request that have an effect, with whole numbers as such."""
    known = {*LEAST, *CHOICES, *WITHOUT_EFFECT}
    if unknown := sorted(map(str, given.keys() - known)):
        raise ValueError(f"unknown parameters: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    checked = {}
    for name, value in given.items():
        if name in WITHOUT_EFFECT or value is None:
            continue
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(str, CHOICES[name]))}")
        number = isinstance(value, (int, float)) and value % 1 == 0
        if name in LEAST and (not number or value < LEAST[name]):
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {LEAST[name]}")
        checked[name] = int(value) if name in LEAST else value
    return checked


def _checked(asked):
    """Question and context, and nothing else that the request may hold."""
    asked = asked if isinstance(asked, dict) else {}
    for name in ("question", "context"):
        if not isinstance(asked.get(name), str) or not asked[name].strip():
            raise ValueError(f'inputs: {name} is missing or empty; give {{"question": "...", "context": "..."}}')
    return {"question": asked["question"], "context": asked["context"]}
'''
)


def write(options: Frozen, runtime: Runtime, versions: Mapping[str, str], directory: Path) -> None:
    """Write both files into `directory`. `versions` are those of the compiling packages, by distribution."""
    for name, text in contents(options, runtime, versions).items():
        (directory / name).write_text(text, encoding="utf-8")


def contents(options: Frozen, runtime: Runtime, versions: Mapping[str, str]) -> dict[str, str]:
    """The text of both files, by name. Raises UntrustedInput for a version that is none."""
    name = options.model_dump()["name"]
    snippet = backend(name).snippet(options, runtime)
    text = TEMPLATE.substitute(
        snippet=indent(snippet.rstrip(), " " * 4),
        decoder=_decoder(),
        least={name: least for name, least in COUNTS.items() if name not in BATCHING},
        choices={name: values for name, values in CHOICES.items() if name not in BATCHING},
        without_effect=(*BATCHING, "num_workers"),
    )
    return {HANDLER: text, REQUIREMENTS: _lines(requirements(name, versions))}


def refuse_changed(
    directory: Path, names: Collection[str], options: Frozen, runtime: Runtime, versions: Mapping[str, str]
) -> None:
    """Make both files again, as far as they are among the files `names` of an artifact, and compare.

    Raises UntrustedInput where one is neither what this qabuild writes nor what an earlier one wrote, or where another
    file could be imported in place of a module that the handler imports.
    """
    _refuse_importable(directory, names)
    if not {HANDLER, REQUIREMENTS} & set(names):
        return
    made = contents(options, runtime, versions)
    accepted = {name: {hashlib.sha256(text.encode()).hexdigest()} for name, text in made.items()}
    name = options.model_dump()["name"]
    lines = (line.split() for line in EARLIER_HANDLERS.read_text(encoding="ascii").splitlines())
    accepted[HANDLER] |= {digest for digest, *case in lines if case == [name, runtime.device, runtime.dtype]}
    earlier = _lines(requirements(name, versions, *EARLIER_PACKAGES.get(name, ())))
    accepted[REQUIREMENTS].add(hashlib.sha256(earlier.encode()).hexdigest())
    for file in accepted.keys() & set(names):
        if files.sha256(directory / file) not in accepted[file]:
            raise UntrustedInput(
                f"{directory / file}: not what qabuild writes for backend and versions of the manifest",
                "it was changed, or is of a newer qabuild: build the artifact again, or fetch it from whom you trust",
            )


def _refuse_importable(directory: Path, names: Collection[str]) -> None:
    """Whoever runs the handler has the artifact's folder in Python's path."""
    suffixes = (*all_suffixes(), ".pyd", ".pyo")
    for name in sorted(set(names) - {HANDLER}):
        if name.lower().endswith(suffixes):
            raise UntrustedInput(
                f"{directory / name}: {HANDLER} could import it, and qabuild writes no such file",
                "fetch the artifact from whom you trust, or build it again",
            )


def _decoder() -> str:
    """The source of the plain decoder, without its docstring. It is read, not imported: importing it imports torch."""
    source = Path(ask.__file__).with_name("plain_decoder.py").read_text(encoding="utf-8")
    return source.split('"""', 2)[2].strip() + "\n\n"


def requirements(name: str, versions: Mapping[str, str], *more: str) -> dict[str, str]:
    """The release of each package that the handler of the backend `name` needs, and of `more`, by distribution.

    Without the local version label, such as `+cpu`: it names a build of the package, which an index may not have.
    """
    packages = {*ask.PACKAGES, *backend(name).PACKAGES, *more}
    names = {name for package in packages for name in distributions(package)}
    return {name: _release(versions[name]) for name in sorted(names & set(versions))}


def other_versions(name: str, compiled: Mapping[str, str], installed: Mapping[str, str]) -> dict[str, str]:
    """The `installed` version, or (none), of each pinned package whose release differs from requirements.txt."""
    return {
        package: installed.get(package, "(none)")
        for package, release in requirements(name, compiled).items()
        if _release(installed.get(package, "(none)")) != release
    }


def _lines(requirements: Mapping[str, str]) -> str:
    """requirements.txt. Raises UntrustedInput for a version that pip could take for more than a version."""
    for package, version in requirements.items():
        if not re.fullmatch(r"[0-9][0-9A-Za-z.!_-]*", version):
            raise UntrustedInput(f"{version!r} is no version of {package}", "build the artifact again")
    return "".join(f"{package}=={version}\n" for package, version in requirements.items())


def _release(version: str) -> str:
    return version.partition("+")[0]
