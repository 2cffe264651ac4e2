"""Writes handler.py and requirements.txt, with which Hugging Face Inference Endpoints can serve an artifact.

Both are written when the artifact is compiled and are sealed with it, so the verified files are the served files. The
handler contains the backend's loading snippet and the plain decoder, so it needs neither qabuild nor a pipeline of
transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from string import Template
from textwrap import indent

from qabuild.models.backends import backend
from qabuild.models.runtime import Runtime
from qabuild.qa import ask
from qabuild.system.frozen import Frozen
from qabuild.system.packages import distributions

HANDLER = "handler.py"
REQUIREMENTS = "requirements.txt"

TEMPLATE = Template(
    '''\
"""Answers questions from the model beside this file, for Hugging Face Inference Endpoints.

Made by qabuild when the model was compiled. It needs the packages of requirements.txt, and no qabuild.
"""

$decoder
PARAMETERS = {
    "align_to_words",
    "doc_stride",
    "handle_impossible_answer",
    "max_answer_len",
    "max_question_len",
    "max_seq_len",
    "top_k",
}


def load(directory):
    """Model and tokenizer from the files of that folder."""
$snippet
    return model, tokenizer


class EndpointHandler:
    """Holds the model; called once for each request."""

    def __init__(self, path=""):
        self.model, self.tokenizer = load(path or ".")

    def __call__(self, data):
        """Answer {"inputs": {"question": ..., "context": ...}, "parameters": {...}}, or a list of inputs.

        An answer is a dictionary of `answer`, `score`, `start` and `end`, or a list of them with a top_k above 1; a
        list of inputs gives a list of these. Raises ValueError for a request of another form.
        """
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if unknown := sorted(set(parameters) - PARAMETERS):
            raise ValueError(f"unknown parameters: {', '.join(unknown)}; known: {', '.join(sorted(PARAMETERS))}")
        asked = inputs if isinstance(inputs, list) else [inputs]
        answers = [answer(self.model, self.tokenizer, **_checked(each), **parameters) for each in asked]
        return answers if isinstance(inputs, list) else answers[0]


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
    name = options.model_dump()["name"]
    snippet = backend(name).snippet(options, runtime)
    text = TEMPLATE.substitute(snippet=indent(snippet.rstrip(), " " * 4), decoder=_decoder())
    (directory / HANDLER).write_text(text, encoding="utf-8")
    lines = [f"{package}=={version}\n" for package, version in requirements(name, versions).items()]
    (directory / REQUIREMENTS).write_text("".join(lines), encoding="utf-8")


def _decoder() -> str:
    """The source of the plain decoder, without its docstring."""
    from qabuild.qa import plain_decoder

    return inspect.getsource(plain_decoder).split('"""', 2)[2].strip() + "\n\n"


def requirements(name: str, versions: Mapping[str, str]) -> dict[str, str]:
    """The release of each package that the handler of the backend `name` needs, by distribution.

    Without the local version label, such as `+cpu`: it names a build of the package, which an index may not have.
    """
    packages = {*ask.PACKAGES, *backend(name).PACKAGES}
    names = {name for package in packages for name in distributions(package)}
    return {name: _release(versions[name]) for name in sorted(names & set(versions))}


def other_versions(name: str, compiled: Mapping[str, str], installed: Mapping[str, str]) -> dict[str, str]:
    """The `installed` version, or (none), of each pinned package whose release differs from requirements.txt."""
    return {
        package: installed.get(package, "(none)")
        for package, release in requirements(name, compiled).items()
        if _release(installed.get(package, "(none)")) != release
    }


def _release(version: str) -> str:
    return version.partition("+")[0]
