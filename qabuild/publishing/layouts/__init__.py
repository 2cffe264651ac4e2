"""The layouts of other tools that artifacts are exported to: the protocol of a layout, and the table of layouts.

A layout is one module. To add one: write the module, and add a line to `LAYOUTS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from qabuild.errors import BadTarget

if TYPE_CHECKING:
    from qabuild.artifact.manifest import Artifact


class Layout(Protocol):
    """The interface of a layout's module. Importing the module must not import a runtime or another tool."""

    SUMMARY: str
    """What opens the folder, in a few words, for `qabuild export --list`."""

    SEVERAL: bool
    """Whether several artifacts of one checkpoint go into one folder."""

    def check(self, artifact: Artifact) -> None:
        """Raise, with the reason, for an artifact that the other tool could not run.

        Raises BadTarget; UntrustedInput for files that hold more than qabuild compiles to; MissingEnvironment where a
        package that writes the layout is missing.
        """

    def write(self, artifacts: Sequence[Artifact], directory: Path) -> None:
        """Write the artifacts, which `check` accepted, into the empty `directory`; all model files byte for byte.

        `directory` has the name of the exported folder, but lies elsewhere until it is complete.
        """

    def guide(self, artifacts: Sequence[Artifact], name: str) -> str:
        """How to use the exported folder `name`, and in what its answers differ: Markdown for its README.md."""


LAYOUTS: dict[str, str] = {
    "docker": "qabuild.publishing.layouts.docker",
    "transformers-js": "qabuild.publishing.layouts.transformers_js",
    "mlflow": "qabuild.publishing.layouts.mlflow",
    "triton": "qabuild.publishing.layouts.triton",
}


def layout(name: str) -> Layout:
    """Import the module of the layout `name`, a key of `LAYOUTS`. Raises BadTarget for any other name."""
    if name not in LAYOUTS:
        raise BadTarget(f"there is no layout {name!r}", f"layouts are {', '.join(LAYOUTS)}")
    return cast(Layout, importlib.import_module(LAYOUTS[name]))
