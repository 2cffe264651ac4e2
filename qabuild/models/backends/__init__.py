"""The backend interface: the protocol that every backend module implements, and the table of backends.

A backend compiles a checkpoint for one runtime, such as ONNX Runtime, and loads the result. It is one module or
package. To add one: write the module, add a line to `BACKENDS`, and add a sample target.
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
    from qabuild.models.capabilities import Rule, Way
    from qabuild.models.checkpoint.resolve import Checkpoint


class Backend(Protocol):
    """The interface of a backend module. Importing the module must not import a runtime; its functions may."""

    Options: type[Frozen]
    """The model of the target's `[backend]` table; its `name` is a Literal that defaults to the backend's name."""

    PACKAGES: tuple[str, ...]
    """The PyPI names of the distributions that `load` uses, and `compile` too."""

    EXTRAS: tuple[str, ...]
    """The extras of qabuild that install `PACKAGES`, any one of which suffices; empty if qabuild itself does."""

    DTYPES: Mapping[str, tuple[Dtype, ...]]
    """The supported dtypes of each device; a device that is missing here is not supported."""

    BATCH_DEPENDENT: tuple[Dtype, ...]
    """The dtypes in which a window's logits depend on the windows that share its batch, by more than rounding."""

    WAYS: tuple[Way, ...]
    """The modes in which the backend runs models, each with the architectures it supports; see `Way`."""

    RUNTIME: tuple[str, str]
    """The runtime's display name, and the PyPI name of the distribution whose version is reported for it."""

    SPEED: tuple[Rule, ...]
    """Rules on the speed of a dtype that override, for this backend, those of `qabuild.models.dtype_speed`."""

    VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]]
    """Options that may be faster than the defaults, by dtype; `qabuild tune` tries each, such as `{"aot": True}`."""

    def check(self, config: Mapping[str, Any], options: Any, runtime: Runtime) -> None:
        """Raise BadTarget, before any work, for keys of the target that cannot be combined.

        This covers what `DTYPES` and `WAYS` cannot express; what is missing on this machine is for `missing`. `config`
        is the checkpoint's config.json, or empty if the checkpoint is not resolved yet. Imports no runtime.
        """

    def ways(self, options: Any, runtime: Runtime) -> Sequence[Way]:
        """The entries of `WAYS` that apply to these options; each of them must support the model's architecture."""

    def compile_packages(self, options: Any) -> Mapping[str, Sequence[str]]:
        """The distributions that only `compile` uses with these options, each with the extras that install it."""

    def here(self) -> str:
        """One line for `qabuild doctor` on what the runtime can do on this machine.

        May import the runtime, and may raise whatever that import raises.
        """

    def missing(self, options: Any, runtime: Runtime) -> list[str]:
        """Whatever is missing on this machine to build and run such a model, each with its remedy; empty if nothing is.

        `PACKAGES` and the device are checked elsewhere; this is for processor instructions, providers, compilers.
        """

    def native_code(self, options: Any) -> Sequence[str]:
        """The files that `compile` writes with machine code in them, which `load` executes; empty if there are none.

        Only those that this user compiled on this machine are loaded, or with the caller's explicit permission.
        """

    def compile(self, checkpoint: Checkpoint, options: Any, runtime: Runtime, directory: Path) -> dict[str, Any]:
        """Compile the checkpoint into the empty `directory`: all that `load` needs, config and tokenizer included.

        A backend that converts the model compares its logits with the checkpoint's (`logit_check`) and raises
        VerificationFailed if they differ. The same checkpoint and options must give the same bytes, except in files of
        `native_code`. Returns the manifest's record of the compilation (counts of fused nodes, traced shapes), as JSON
        values; the model card prints the sentences of its list `limits`. Runs in a subprocess.
        """

    def load(self, directory: Path, options: Any, runtime: Runtime) -> Any:
        """Load the compiled model from the files of `directory` alone, ready on its device.

        The model behaves like an `AutoModelForQuestionAnswering` at inference: called with `input_ids`,
        `attention_mask` and, if the architecture has them, `token_type_ids` (int64, [batch, sequence]), it returns a
        `QuestionAnsweringModelOutput` with `start_logits` and `end_logits` (float32, [batch, sequence]).

        A model that runs several batches concurrently has two more members: `at_once`, the number of batches, and
        `submit`, which takes the arguments of a call and returns a future at once. The future's `result()` waits for
        the output; after that, its `seconds` is the latency, from start to end.

        Before a runtime opens a file that can hold code, it is examined: `load` accepts only what `compile` writes.

        Raises MissingEnvironment if the device, or an entry of `missing`, is missing; UntrustedInput for a file that
        holds more.
        """

    def snippet(self, options: Any, runtime: Runtime) -> str:
        """Python source that loads the artifact without qabuild, for the model card and the sealed handler.py.

        It reads the variable `directory` (a str) and defines `tokenizer` and `model`; `model` is called as the result
        of `load` is.
        """


BACKENDS: dict[str, str] = {
    "eager": "qabuild.models.backends.eager",
    "deepspeed": "qabuild.models.backends.deepspeed",
    "torchscript": "qabuild.models.backends.torchscript",
    "torch_export": "qabuild.models.backends.torch_export",
    "onnxruntime": "qabuild.models.backends.onnxruntime",
    "openvino": "qabuild.models.backends.openvino",
}
"""From plain PyTorch to what changes most for speed: of two with one expected speed, `qabuild init` takes the later."""

BASELINE = "eager"
"""The backend that runs the checkpoint as it is; in fp32 it is the baseline of comparisons."""


def backend(name: str) -> Backend:
    """Import the backend module `name`, a key of `BACKENDS`. Raises UntrustedInput for any other name."""
    if name not in BACKENDS:
        raise UntrustedInput(f"there is no backend {name!r} here: known are {', '.join(BACKENDS)}", "update qabuild")
    return cast(Backend, importlib.import_module(BACKENDS[name]))
