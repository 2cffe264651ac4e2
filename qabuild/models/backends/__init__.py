"""The seam: what every backend offers, and the table of those there are.

A backend is one module or folder. To add one: write it, add a line to `BACKENDS` and a sample target.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from qabuild.errors import UntrustedInput
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.models.dtype_speed import Rule
    from qabuild.models.support import Way


class Backend(Protocol):
    """What a backend module offers. Importing the module imports no runtime; its functions do."""

    Options: type[Frozen]
    """The keys of the target's `[backend]` table; `name` among them, a Literal with a default."""

    PACKAGES: tuple[str, ...]
    """Distributions that take part in compiling and loading, by their PyPI names."""

    EXTRAS: tuple[str, ...]
    """The extras of qabuild that install them, of which one is enough; none where qabuild itself does."""

    COMPILE_ONLY: tuple[str, ...]
    """Those of `PACKAGES` that loading does not need."""

    DTYPES: Mapping[str, tuple[Dtype, ...]]
    """The dtypes that it computes in, by device."""

    WAYS: tuple[Way, ...]
    """The ways in which it runs models, each with the architectures that it supports."""

    RUNTIME: tuple[str, str]
    """What runs its models, as people call it, and the distribution that it is."""

    SPEED: tuple[Rule, ...]
    """What to expect of its speed where that differs from what the processor's instructions promise."""

    def check(self, config: Mapping[str, Any], options: Any, runtime: Runtime) -> None:
        """Refuse, before any work, combinations of keys beyond what `DTYPES` and `WAYS` say.

        `config` is the checkpoint's config.json; the check reads it and imports no runtime.

        Raises BadTarget for a combination that is not supported. What the machine
        lacks is the business of `qabuild.system.machine`.
        """

    def ways(self, options: Any, runtime: Runtime) -> Sequence[Way]:
        """Those of `WAYS` that a model with these options takes: its architecture must be supported in each."""

    def here(self) -> str:
        """What `RUNTIME` can do on this machine, for `qabuild doctor`; it may import it, and raise what that raises."""

    def lacks(self, options: Any, runtime: Runtime) -> list[str]:
        """What this machine lacks to run such a model, beside `PACKAGES` and the device; each with its remedy."""

    def compile(self, checkpoint: Checkpoint, options: Any, runtime: Runtime, directory: Path) -> dict[str, Any]:
        """Write everything that `load` needs, config and tokenizer included, into the empty `directory`.

        Returns what the manifest is to record (counts of fused nodes, traced shapes), as JSON values.
        """

    def load(self, directory: Path, options: Any, runtime: Runtime) -> Any:
        """Return the compiled model, from the files of `directory` alone, ready on its device.

        It behaves like a model of `AutoModelForQuestionAnswering` at inference: called with `input_ids`,
        `attention_mask` and, where the architecture has them, `token_type_ids` (int64, [batch, sequence]), it
        returns a `QuestionAnsweringModelOutput` with `start_logits` and `end_logits` ([batch, sequence]).

        One that computes several batches side by side, `at_once` of them, has a method `submit` too. It takes what a
        call takes and returns before that is computed; the `result()` of what it returns waits for the output, and
        from then on its `seconds` tell how long that took from start to end.
        """

    def snippet(self, options: Any, runtime: Runtime) -> str:
        """Python lines that need no qabuild: with `directory` (a str) defined, they define `model`, called as `load`
        says, and `tokenizer`.

        The model card shows them, and the sealed handler.py is made around them.
        """


BACKENDS: dict[str, str] = {
    "eager": "qabuild.models.backends.eager",
    "torchscript": "qabuild.models.backends.torchscript",
    "onnxruntime": "qabuild.models.backends.onnxruntime",
    "deepspeed": "qabuild.models.backends.deepspeed",
    "openvino": "qabuild.models.backends.openvino",
}

BASELINE = "eager"
"""The backend that is the checkpoint itself; in fp32 it is the baseline of comparisons."""


def backend(name: str) -> Backend:
    """The backend module of that name (a key of `BACKENDS`). Raises UntrustedInput for any other."""
    if name not in BACKENDS:
        raise UntrustedInput(f"there is no backend {name!r} here: known are {', '.join(BACKENDS)}", "update qabuild")
    return cast(Backend, importlib.import_module(BACKENDS[name]))
